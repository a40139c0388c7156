//go:build !unix

package refdata

import (
	"errors"
	"os"
)

func lockFile(*os.File) error { return errors.ErrUnsupported }
