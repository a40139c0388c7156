package results

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// writeFile puts data into dir/name so that after a crash the file holds either its old content or the new.
func writeFile(dir, name string, data []byte) error {
	return replaceFile(dir, name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// replaceFile does what writeFile does with content that is produced piece by piece.
func replaceFile(dir, name string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(dir, name+".*.tmp")
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("results: writing %s: %w", filepath.Join(dir, name), err)
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil { // CreateTemp's files are for their owner alone
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in a folder durable: renaming or creating a file changes its folder.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
