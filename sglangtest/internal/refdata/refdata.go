// Package refdata finds the reference recordings that tests compare with: bytes of real servers, golden
// metrics, traces. They are too large for the repository; a clone without them skips those tests.
package refdata

import (
	"os"
	"path/filepath"
)

// TB is the part of testing.TB that this package uses.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// EnvDir names the folder of recordings, instead of shared/data beside the repository.
// EnvRequire, if not empty, turns "not there" from a skip into a failure; CI sets it.
const (
	EnvDir     = "SGLANGTEST_DATA"
	EnvRequire = "SGLANGTEST_REQUIRE_DATA"
)

// Path returns the path of a recording, given relative to the folder of recordings, or skips the test.
func Path(tb TB, name string) string {
	tb.Helper()
	root := os.Getenv(EnvDir)
	if root == "" {
		dir, err := os.Getwd()
		if err != nil {
			tb.Fatalf("refdata: %v", err)
		}
		for ; ; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				root = filepath.Join(filepath.Dir(dir), "shared", "data")
				break
			}
			if dir == filepath.Dir(dir) {
				tb.Fatalf("refdata: no go.mod above the working directory")
			}
		}
	}
	path := filepath.Join(root, filepath.FromSlash(name))
	if _, err := os.Stat(path); err != nil {
		if os.Getenv(EnvRequire) != "" {
			tb.Fatalf("reference recording %s is required but missing: %v", name, err)
		}
		tb.Skipf("reference recording %s is not on this machine: put the recordings beside the repository or set %s", name, EnvDir)
	}
	return path
}

// EnvSGLang holds the base URL of a real SGLang server. EnvRequireSGLang, if not empty, turns its absence from
// a skip into a failure; CI sets it.
const (
	EnvSGLang        = "SGLANGTEST_SGLANG_URL"
	EnvRequireSGLang = "SGLANGTEST_REQUIRE_SGLANG"
)

// SGLang returns the base URL of a real SGLang server, or skips the test. Until the test ends no other test, of
// any package, has the server; what a test changes, it must change back.
func SGLang(tb TB) string {
	tb.Helper()
	url := os.Getenv(EnvSGLang)
	if url == "" {
		if os.Getenv(EnvRequireSGLang) != "" {
			tb.Fatalf("a real SGLang server is required, but %s is not set", EnvSGLang)
		}
		tb.Skipf("no real SGLang server: set %s to the base URL of one", EnvSGLang)
	}
	// Tests of several packages run at the same time, and some change the server's limit.
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "sglangtest-sglang.lock"), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		tb.Fatalf("refdata: %v", err)
	}
	tb.Cleanup(func() { lock.Close() })
	if err := lockFile(lock); err != nil {
		tb.Fatalf("refdata: lock the server: %v", err)
	}
	return url
}

// EnvSGLangDir names the folder of a real SGLang that can be launched here: its Python as "python", or a wrapper of that
// name, and the model "tiny-llama". EnvRequireSGLang holds for it as well.
const EnvSGLangDir = "SGLANGTEST_SGLANG_DIR"

// SGLangDir returns that folder, or skips the test.
func SGLangDir(tb TB) string {
	tb.Helper()
	dir := os.Getenv(EnvSGLangDir)
	if dir == "" {
		if os.Getenv(EnvRequireSGLang) != "" {
			tb.Fatalf("a real SGLang to launch is required, but %s is not set", EnvSGLangDir)
		}
		tb.Skipf("no real SGLang to launch: set %s to its folder", EnvSGLangDir)
	}
	return dir
}
