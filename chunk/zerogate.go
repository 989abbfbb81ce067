package chunk

// zeroGate has the log's checkpoints wait for words that are being cleared. A ZERO that is durable
// in the log may have to wait for its CRC pages, for as long as the disk takes to read them: a
// checkpoint without those words would let the log forget the record.
type zeroGate struct {
	n    [2]int // being cleared, begun since the last checkpoint and before it
	now  int    // which of them is since
	next func() // the checkpoint that waits
}

// begin counts a range whose words are to be cleared; end gets what it returns.
func (g *zeroGate) begin() int {
	g.n[g.now]++
	return g.now
}

func (g *zeroGate) end(k int) {
	if g.n[k]--; k != g.now && g.n[k] == 0 && g.next != nil {
		next := g.next
		g.next = nil
		next()
	}
}

// checkpoint calls next when all that has begun by now has ended. One at a time.
func (g *zeroGate) checkpoint(next func()) {
	if g.next != nil {
		panic("chunk: two checkpoints of the log at once")
	}
	before := g.now
	g.now ^= 1
	if g.n[before] == 0 {
		next()
		return
	}
	g.next = next
}
