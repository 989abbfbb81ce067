package chunk

import (
	"cmp"
	"slices"
)

// redoing is what a start does with the ZERO and Stored records since the last checkpoint: clear
// and set words in CRC pages, in the order of the log for each page. If there are many, the pages
// are taken as they lie on the disk, each once and several at a time: a log may hold a million such
// records, nothing is served before they are redone, and a hard disk takes 10 ms to read a page.
type redoing struct {
	list    []zeroing // to be redone
	atOnce  int       // how many may wait for their pages
	inTurn  int       // how many are begun in one turn
	idle    []*zeroing
	running int
	waits   bool // for its next turn
	busy    bool // redoNext is at work
}

const (
	// redoFew records are redone one after the other, in a few seconds at most.
	redoFew = 256

	// redoAtOnce and redoInTurn are the bounds for more of them.
	redoAtOnce = 64
	redoInTurn = 4096
)

// redoAll redoes all records. The log writes nothing back before: it would set the word of a newer
// write, and have its checkpoint forget a record that isn't redone yet.
func (o *opener) redoAll() {
	d := &o.redo
	d.list, d.atOnce, d.inTurn = o.zeros, 1, 1
	if o.zeros = nil; len(d.list) > redoFew {
		d.list, d.atOnce, d.inTurn = byPage(d.list), redoAtOnce, redoInTurn
	}
	o.redoNext()
}

func (o *opener) redoNext() {
	d := &o.redo
	d.waits = false
	if len(d.list) == 0 && d.running == 0 {
		o.finish()
		return
	}
	d.busy = true
	for n := 0; n < d.inTurn && d.running < d.atOnce && len(d.list) > 0; n++ {
		var z *zeroing
		if n := len(d.idle); n > 0 {
			z, d.idle = d.idle[n-1], d.idle[:n-1]
		} else {
			z = &zeroing{done: o.redone}
		}
		next := &d.list[0]
		z.slot, z.block, z.end, z.sums = next.slot, next.block, next.end, next.sums
		d.list = d.list[1:]
		d.running++
		o.sh.store.zero(z)
	}
	d.busy = false
	o.redoSoon()
}

func (o *opener) redone(z *zeroing) {
	o.redo.running--
	o.redo.idle = append(o.redo.idle, z)
	o.redoSoon()
}

// redoSoon has redoNext called if there is something for it to do.
func (o *opener) redoSoon() {
	d := &o.redo
	if d.busy || d.waits || len(d.list) > 0 && d.running == d.atOnce ||
		len(d.list) == 0 && d.running > 0 {
		return
	}
	d.waits = true
	o.sh.later(o.redoNext)
}

// firstPage is the CRC page of the first block.
func (z *zeroing) firstPage() uint32 { return z.slot*pagesPerSlot + z.block/wordsPerPage }

// byPage cuts what goes over several pages in pieces and sorts all by page. What is of one page
// stays in its order.
func byPage(list []zeroing) []zeroing {
	pieces := make([]zeroing, 0, len(list))
	for _, z := range list {
		for z.block < z.end {
			p := z
			p.end = min(z.end, (z.block/wordsPerPage+1)*wordsPerPage)
			if z.sums != nil {
				n := 4 * (p.end - z.block)
				p.sums, z.sums = z.sums[:n:n], z.sums[n:]
			}
			pieces = append(pieces, p)
			z.block = p.end
		}
	}
	slices.SortStableFunc(pieces, func(a, b zeroing) int {
		return cmp.Compare(a.firstPage(), b.firstPage())
	})
	return pieces
}
