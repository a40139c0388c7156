package textfile

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf16"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

const text = "{\"a\": \"größe 🙂\"}\r\nend\n"

func wideBytes(order binary.AppendByteOrder, mark bool) []byte {
	var out []byte
	if mark {
		out = order.AppendUint16(out, 0xfeff)
	}
	for _, u := range utf16.Encode([]rune(text)) {
		out = order.AppendUint16(out, u)
	}
	return out
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(data)
	z.Close()
	return b.Bytes()
}

func zstandard(t testing.TB, data []byte) []byte {
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	defer z.Close()
	return z.EncodeAll(data, nil)
}

func open(t testing.TB, data []byte) (string, error) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	f, err := Open(path)
	if err != nil {
		return "", err
	}
	got, err := io.ReadAll(f)
	require.NoError(t, f.Close())
	return string(got), err
}

func TestTextInEveryForm(t *testing.T) {
	plain := []byte(text)
	for name, data := range map[string][]byte{
		"plain": plain, "with a mark": append([]byte("\xef\xbb\xbf"), plain...), "gzip": gzipped(plain), "zstd": zstandard(t, plain),
		"UTF-16 LE": wideBytes(binary.LittleEndian, true), "UTF-16 BE": wideBytes(binary.BigEndian, true),
		"UTF-16 in gzip": gzipped(wideBytes(binary.LittleEndian, true)), "two members": append(gzipped(plain[:5]), gzipped(plain[5:])...),
	} {
		got, err := open(t, data)
		require.NoError(t, err, name)
		require.Equal(t, text, got, name)
	}
	got, err := open(t, nil)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestForeignFilesAreNamed(t *testing.T) {
	for data, want := range map[string]string{
		"PAR1\x15\x04": "Parquet", "PK\x03\x04x": "zip archive", "\xfd7zXZ\x00": "xz", "a\x00b": "zero bytes",
		string(wideBytes(binary.LittleEndian, false)): "UTF-16 without a byte order mark",
		string(gzipped([]byte("PAR1xx"))):             "Parquet",
		"\x1f\x8bnot gzip":                            "begins like a gzip file",
	} {
		_, err := open(t, []byte(data))
		require.ErrorContains(t, err, want)
		for _, r := range err.Error() {
			require.GreaterOrEqual(t, r, ' ', "%q", err)
		}
	}
	_, err := open(t, gzipped([]byte(text))[:20])
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte(text))
	f.Add(gzipped([]byte(text)))
	f.Add(zstandard(f, []byte(text)))
	f.Add(wideBytes(binary.BigEndian, true))
	f.Add([]byte{0xff, 0xfe, 0x00, 0xd8, 0x41})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := newReader(io.NopCloser(bytes.NewReader(data)))
		if err != nil {
			return
		}
		io.Copy(io.Discard, io.LimitReader(r, 1<<20))
		require.NoError(t, r.Close())
	})
}
