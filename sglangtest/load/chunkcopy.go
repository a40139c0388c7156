package load

import "time"

// AppendEncoded adds n chunks that are a part of another list, without encoding them again: enc is the part of that
// list's [Chunks.Encoded] that holds them, and last is the At of the last one. The first of them counts from the chunk
// before it in the other list, whose At must be that of the chunk appended last here. Nothing of this is checked.
//
// It is for engines that produce the same moments for many answers at once.
func (c *Chunks) AppendEncoded(enc []byte, n int, last time.Duration) {
	c.enc = append(c.enc, enc...)
	c.n += n
	c.last = last
}

// CopyTo returns a list of the same chunks that is held in buf, of which it uses the first len(c.Encoded()) bytes; buf
// must be that long. It costs one copy, where [ChunksFrom] has to read what came from outside.
func (c Chunks) CopyTo(buf []byte) Chunks {
	n := copy(buf, c.enc)
	c.enc = buf[:n:n]
	return c
}
