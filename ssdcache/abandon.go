package ssdcache

// Abandon gives the index's memory back without anything else, for simulations whose process was
// killed. Nothing may call the log again.
func (l *Log) Abandon() {
	l.closed = true
	_ = l.idx.close()
}
