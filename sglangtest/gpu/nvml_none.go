//go:build !(cgo && linux)

package gpu

import "errors"

// openNVML stands in where a shared library cannot be opened.
func openNVML() (source, error) {
	return nil, errors.New("this program was built without cgo or not for Linux")
}
