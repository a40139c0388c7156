// Package gpu lists the GPUs of this host and samples what they do: use, memory, power, temperature and clocks.
//
// [Open] takes the NVIDIA management library (NVML) where the program was built with cgo for Linux and the library is
// there, and the program nvidia-smi otherwise; without either it says why each way failed ([UnavailableError]).
// [Devices] is then the GPU inventory of a server manager, and its [Devices.Sampler] samples on a run's clock.
//
// NVML's functions are looked up when they are first called. A linker that is told to bind all at the start (gcc of some
// distributions does so by itself; "gcc -dumpspecs" shows "-z now") makes programs that end at once with "symbol lookup
// error: undefined symbol: nvml…". Build with -ldflags=-extldflags=-Wl,-z,lazy there, or with CGO_ENABLED=0.
package gpu
