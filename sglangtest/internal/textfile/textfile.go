// Package textfile opens files that people call text: compressed ones, ones with a byte order mark, ones in UTF-16. A file
// that is something else is refused by what it is.
package textfile

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
)

// Open opens the file at path for reading as UTF-8 text: .gz, .zst and .bz2 by their content, whatever they are called, without a
// byte order mark, and UTF-16 with one in either order. The caller closes it. An error of opening is an [os.PathError]; others do
// not name the path.
func Open(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return newReader(f)
}

// A reader closes what lies under it.
type reader struct {
	io.Reader
	close []func() error
}

func (r *reader) Close() error {
	var errs []error
	for _, f := range r.close {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// sniffed is how much of a file decides what it is.
const sniffed = 4096

// newReader returns the reader of f's text. It closes f if it fails.
func newReader(f io.ReadCloser) (_ io.ReadCloser, err error) {
	r := &reader{close: []func() error{f.Close}}
	defer func() {
		if err != nil {
			r.Close() // it was read only: nothing is lost
		}
	}()
	in := bufio.NewReaderSize(f, 64<<10)
	head, err := peek(in)
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("it begins like a gzip file: %w", err)
		}
		in = bufio.NewReaderSize(z, 64<<10)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("it begins like a zstd file: %w", err)
		}
		r.close = append([]func() error{func() error { z.Close(); return nil }}, r.close...)
		in = bufio.NewReaderSize(z, 64<<10)
	case bytes.HasPrefix(head, []byte("BZh")):
		in = bufio.NewReaderSize(bzip2.NewReader(in), 64<<10)
	}
	if head, err = peek(in); err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0xef, 0xbb, 0xbf}):
		_, err = in.Discard(3)
		r.Reader = in
	case bytes.HasPrefix(head, []byte{0xff, 0xfe}):
		_, err = in.Discard(2)
		r.Reader = &wide{in: in, order: binary.LittleEndian}
	case bytes.HasPrefix(head, []byte{0xfe, 0xff}):
		_, err = in.Discard(2)
		r.Reader = &wide{in: in, order: binary.BigEndian}
	default:
		if what := foreign(head); what != "" {
			return nil, errors.New(what)
		}
		r.Reader = in
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// peek returns the first bytes, fewer if there are no more.
func peek(in *bufio.Reader) ([]byte, error) {
	head, err := in.Peek(sniffed)
	if err == io.EOF {
		err = nil
	}
	return head, err
}

// formats are kinds of files that are taken for text, by their first bytes.
var formats = []struct{ magic, says string }{
	{"PAR1", "it is a Parquet file: write its rows as JSON lines or CSV first, for instance with duckdb -c \"COPY (FROM 'in.parquet') TO 'out.jsonl'\""},
	{"ARROW1", "it is an Arrow file: write its rows as JSON lines or CSV first"},
	{"\xff\xff\xff\xff", "it looks like an Arrow stream: write its rows as JSON lines or CSV first"},
	{"PK\x03\x04", "it is a zip archive (or a spreadsheet): unpack it first"},
	{"\xfd7zXZ\x00", "it is compressed with xz: unpack it first (xz -d)"},
	{"7z\xbc\xaf\x27\x1c", "it is a 7z archive: unpack it first"},
	{"\x04\x22\x4d\x18", "it is compressed with lz4: unpack it first (lz4 -d)"},
	{"\x80\x04", "it looks like a Python pickle: write its rows as JSON lines or CSV first"},
	{"SQLite format 3", "it is an SQLite database: write its rows as JSON lines or CSV first"},
	{"%PDF", "it is a PDF file"},
}

// foreign says what a file is that is no text; "" if it may be text.
func foreign(head []byte) string {
	for _, f := range formats {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return f.says
		}
	}
	if len(head) > 262 && string(head[257:262]) == "ustar" {
		return "it is a tar archive: unpack it first"
	}
	even, odd := 0, 0
	for i, b := range head {
		if b == 0 && i%2 == 0 {
			even++
		} else if b == 0 {
			odd++
		}
	}
	switch zeros := even + odd; {
	case zeros == 0:
	case max(even, odd) > len(head)/4 && min(even, odd) < len(head)/16:
		return "it looks like UTF-16 without a byte order mark: write it as UTF-8 first (iconv -f UTF-16LE -t UTF-8)"
	default:
		return "it is not text: it holds zero bytes"
	}
	return ""
}

// A wide reads UTF-16 as UTF-8.
type wide struct {
	in    *bufio.Reader
	order binary.ByteOrder
	out   []byte // read and not handed out
	next  uint16 // a unit that was read ahead
	ahead bool
}

func (w *wide) unit() (uint16, error) {
	if w.ahead {
		w.ahead = false
		return w.next, nil
	}
	var b [2]byte
	if _, err := io.ReadFull(w.in, b[:]); err != nil {
		return 0, err // io.ErrUnexpectedEOF: half a unit
	}
	return w.order.Uint16(b[:]), nil
}

func (w *wide) Read(p []byte) (int, error) {
	for len(w.out) < len(p) {
		u, err := w.unit()
		if err != nil {
			if len(w.out) > 0 {
				break
			}
			return 0, err
		}
		r := rune(u)
		if utf16.IsSurrogate(r) {
			low, err := w.unit()
			if pair := utf16.DecodeRune(r, rune(low)); err == nil && pair != utf8.RuneError {
				r = pair
			} else {
				r = utf8.RuneError
				w.next, w.ahead = low, err == nil
			}
		}
		w.out = utf8.AppendRune(w.out, r)
	}
	n := copy(p, w.out)
	w.out = append(w.out[:0], w.out[n:]...)
	return n, nil
}
