package ssdcache

// Abandon gives memory outside the Go heap back without anything else, for simulations whose
// process was killed. Nothing may call the log again.
func (l *Log) Abandon() {
	l.closed = true
	_ = l.idx.close()
	_ = l.cache.close()
	_ = l.spill.Abandon()
	if l.destage.image != nil {
		_ = l.destage.image.Abandon()
	}
}
