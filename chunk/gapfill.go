package chunk

import (
	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// A write-back with gaps is written with one operation where that is possible: what lies in the
// gaps is read, and written again as it is. So a disk that seeks writes a hundred blocks that lie
// about in a MiB in the time of two operations. A power cut in the middle does no harm to them: the
// sectors are overwritten with what they hold.
//
//  1. Gaps that may be filled are those whose word says what lies there. Others stay as they are:
//     blocks of zeros, which may be holes in the file, and blocks whose checksum was lost.
//  2. Read each part, from one gap that stays to the next, to the buffer.
//  3. Compare what lies in the gaps with its words. A block that doesn't match stays as it is, for
//     its readers to find, and ends the part.
//  4. Copy the log's blocks over it, and write each part.
//
// Between 2 and 4 nobody else writes in the range: the log has one write-back of a range in flight,
// and others ask writesTo. A ZERO clears the word: what is written under it doesn't count.

type blockSet [ssdcache.MaxRun / 64]uint64

func (s *blockSet) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s *blockSet) has(i int) bool { return s[i/64]>>(i%64)&1 != 0 }

// gapFiller is the part of a destage that deals with gaps.
type gapFiller struct {
	buf     *uring.Buf // memory of the whole run; nil: no gaps, or none is filled
	crowded bool       // something else is written in a gap: none is filled
	left    blockSet   // gaps that aren't filled
	reading bool
	mem     [][]byte // of ops
}

// beginGaps decides which gaps may be filled, and reads them, or writes what lies between.
func (d *destage) beginGaps() {
	st, wb := d.st, d.wb
	d.left = wb.Gaps
	if !d.crowded {
		d.buf = st.pool.Get(wb.Blocks * dataplane.BlockSize)
	}
	if d.buf == nil {
		d.writeParts()
		return
	}
	d.left = blockSet{}
	for i := range wb.Blocks {
		if w := d.word(i); wb.IsGap(i) && (w == wordZeros || w == wordUnknown) {
			d.left.add(i)
		}
	}
	d.used, d.mem = 0, d.mem[:0]
	for from, end := d.part(0); from < wb.Blocks; from, end = d.part(end) {
		if d.gapsIn(from, end) > 0 {
			d.add(uring.DiskRead, from, d.single(from, end))
		}
	}
	if d.used == 0 {
		d.gapsRead()
		return
	}
	d.reading = true
	d.submit()
}

// word is the word of block i of the run.
func (d *destage) word(i int) uint32 {
	block := d.wb.Block + uint32(i)
	return d.pages[block/wordsPerPage-d.wb.Block/wordsPerPage].word(block)
}

// part is the next range of the run, at or behind block at, between gaps that aren't filled.
func (d *destage) part(at int) (from, end int) {
	n := d.wb.Blocks
	for from = at; from < n && d.wb.IsGap(from); from++ {
	}
	last := from
	for end = from; end < n && !d.left.has(end); end++ {
		if !d.wb.IsGap(end) {
			last = end
		}
	}
	return from, min(last+1, n)
}

// gapsIn counts the gaps in a range of the run.
func (d *destage) gapsIn(from, end int) (n uint64) {
	for i := from; i < end; i++ {
		if d.wb.IsGap(i) {
			n++
		}
	}
	return n
}

func (d *destage) memory(from, end int) []byte {
	return d.buf.Bytes()[from*dataplane.BlockSize : end*dataplane.BlockSize]
}

// single is that memory as the buffer of an operation.
func (d *destage) single(from, end int) [][]byte {
	n := len(d.mem)
	d.mem = append(d.mem, d.memory(from, end))
	return d.mem[n : n+1 : n+1]
}

// readFailed says that a read of gaps failed: none of its gaps is filled.
func (d *destage) readFailed(op *uring.DiskOp) {
	first := int((op.Offset - d.st.sb.block(d.wb.Slot, d.wb.Block)) / dataplane.BlockSize)
	_, end := d.part(first)
	for i := first; i < end; i++ {
		if d.wb.IsGap(i) {
			d.left.add(i)
		}
	}
}

// gapsRead is steps 3 and 4.
func (d *destage) gapsRead() {
	d.reading = false
	data, rest := d.wb.Data, []byte(nil)
	for i := range d.wb.Blocks {
		b := d.memory(i, i+1)
		if !d.wb.IsGap(i) {
			if len(rest) == 0 {
				data, rest = data[1:], data[0]
			}
			rest = rest[copy(b, rest):]
		} else if !d.left.has(i) && !wordMatches(d.word(i), dataplane.CRC(b)) {
			d.left.add(i)
		}
	}
	d.writeParts()
}

// writeParts writes each part: out of the buffer, or without one out of the log's memory.
func (d *destage) writeParts() {
	d.used, d.mem = 0, d.mem[:0]
	data, at := d.wb.Data, 0
	for from, end := d.part(0); from < d.wb.Blocks; from, end = d.part(end) {
		if d.buf != nil {
			d.st.filled += d.gapsIn(from, end)
			d.add(uring.DiskWrite, from, d.single(from, end))
			continue
		}
		for n := 0; n < end-from; at++ {
			n += len(data[at]) / dataplane.BlockSize
		}
		d.add(uring.DiskWrite, from, data[:at])
		data, at = data[at:], 0
	}
	d.submit()
}
