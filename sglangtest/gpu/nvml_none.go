//go:build !(nvml && cgo && linux)

package gpu

import "errors"

// openNVML stands in for a build without NVML.
func openNVML() (source, error) {
	return nil, errors.New("this program was built without the tag nvml, without cgo, or not for Linux")
}
