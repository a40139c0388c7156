package results

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
)

// A lineFile is the part of a journal that is read: its complete lines at one moment.
type lineFile struct {
	path string
	size int64 // bytes up to and with the last newline
}

// findLines returns the complete lines of a journal and the number of bytes that follow them.
func findLines(path string) (f lineFile, torn int64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return f, 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return f, 0, err
	}
	f = lineFile{path: path}
	buf := make([]byte, 64<<10)
	for end := info.Size(); end > 0; {
		begin := max(0, end-int64(len(buf)))
		block := buf[:end-begin]
		if _, err := file.ReadAt(block, begin); err != nil {
			return f, 0, err
		}
		if i := bytes.LastIndexByte(block, '\n'); i >= 0 {
			f.size = begin + int64(i) + 1
			break
		}
		end = begin
	}
	return f, info.Size() - f.size, nil
}

// lines yields what decode makes of each line, in the order of the file, and ends after the first error,
// which names the file and the line. It holds one line at a time.
func lines[T any](f lineFile, decode func([]byte) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		file, err := os.Open(f.path)
		if err != nil {
			yield(zero, fmt.Errorf("results: %w", err))
			return
		}
		defer file.Close()
		r := bufio.NewReaderSize(io.LimitReader(file, f.size), 64<<10)
		var line []byte
		for number := 1; ; number++ {
			line, err = readLine(r, line[:0])
			if err == io.EOF {
				return
			}
			var v T
			if err == nil {
				v, err = decode(line)
			}
			if err != nil {
				yield(zero, fmt.Errorf("results: %s:%d: %w", filepath.Clean(f.path), number, err))
				return
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

// readLine appends the next line, without its newline, to line. It returns io.EOF at the end of the file.
func readLine(r *bufio.Reader, line []byte) ([]byte, error) {
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case err == io.EOF && len(line) > 0:
			// The part that is read ends with a newline unless the file has become shorter meanwhile.
			return line, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return line, err
		}
	}
}
