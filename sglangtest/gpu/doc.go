// Package gpu lists the GPUs of this host and samples what they do: use, memory, power, temperature and clocks.
//
// [Open] asks the program nvidia-smi. A program built for Linux with cgo and the build tag nvml asks the NVIDIA management
// library (NVML) instead, which takes 3 ms for a sample instead of 25 (one H100) and also tells the energy used; nvidia-smi
// remains its fall-back. Where nothing answers, the error says why each way failed ([UnavailableError]). [Devices] is then the GPU
// inventory of a server manager, and its [Devices.Sampler] samples on a run's clock.
//
// NVML is behind a tag because its functions are looked up when they are first called: where the linker binds all
// symbols at the start, as gcc of Ubuntu tells it to, a program with go-nvml in it ends at once with "symbol lookup error:
// undefined symbol: nvml…". This builds it everywhere:
//
//	go build -tags nvml -ldflags=-extldflags=-Wl,-z,lazy
package gpu
