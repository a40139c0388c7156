//go:build unix && !linux

package process

func setTitle(string) {}

// dieWithParent does nothing: a child that reads the end of its control pipe ends, too.
func dieWithParent() {}
