package ssdcache

import "golang.org/x/sys/unix"

// Abandon gives memory outside the Go heap back without anything else, for simulations whose
// process was killed. Nothing may call the log again.
func (l *Log) Abandon() {
	l.closed = true
	_ = l.idx.close()
	_ = l.cache.close()
	if l.destage.image != nil {
		_ = unix.Munmap(l.destage.image.Arena())
	}
}
