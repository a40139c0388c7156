package server

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(fakeVariable); mode != "" { // this test binary as another program
		os.Exit(fakeProgram(mode))
	}
	os.Unsetenv("CUDA_VISIBLE_DEVICES") // of the host that runs the tests
	goleak.VerifyTestMain(m)
}
