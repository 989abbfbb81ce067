package ssdcache

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/uring"
)

// The read cache. What is read from the store goes to the log when it is read a second time within
// a while (a ghost list remembers what was read once), as records of kind Clean. Replay skips them:
// nothing of the cache outlives a restart, so a crash can't bring back an old copy. In the life of
// the process a copy is in the index only as long as the store has the same: see Ticket.
//
// A segment that is to be used again is looked through before: clean blocks that were read since
// they were written are appended again, the hottest first. So the ring is a clock with counters.

// Tuning of the read cache.
const (
	admitPressure = 0.5     // of Pressure: from here on only writes go to the log
	cleanPerBatch = 64      // blocks: a batch must not make writes wait long
	rescueAhead   = 2       // segments looked through before they are needed
	rescueShare   = 3. / 4  // of a segment's blocks are kept at most
	rescuePiece   = 64      // blocks read at once
	granule       = 256     // blocks of a slot with a common time of change
	granules      = 1 << 14 // such times; several granules share one
)

// Ticket is a moment of a Log.
type Ticket uint64

type readCache struct {
	l       *Log
	app     Append // for records of the cache
	mem     []byte
	ghost   []uint64 // buckets of four fingerprints, the newest lowest
	now     Ticket
	changed [granules]Ticket

	lap     uint64 // the first segment that takes the place of one filled since Open
	next    uint64 // segment number whose place, with its older contents, is looked through next
	list    []Pos  // of the segment being looked through: to be kept
	at      int    // in list: the next to be read
	reading int    // reads in flight
	first   int    // of the piece being read, in list
	buf     *uring.Buf
	reads   [rescuePiece]ReadOp
	working bool
}

// init makes the ghost list: half as many entries as the log has blocks.
func (c *readCache) init(l *Log) error {
	c.l, c.now = l, 1
	size := (int(l.segs)*int(l.segBlocks) + 7) / 8 * 8
	var err error
	if c.mem, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE); err != nil {
		return fmt.Errorf("map a list of %d bytes for the read cache: %w", size, err)
	}
	c.ghost = unsafe.Slice((*uint64)(unsafe.Pointer(&c.mem[0])), size/8)
	c.list = make([]Pos, 0, l.segBlocks)
	for i := range c.reads {
		c.reads[i].Low, c.reads[i].Done = true, c.rescued
	}
	return nil
}

func (c *readCache) close() error {
	if c.mem == nil {
		return nil
	}
	return unix.Munmap(c.mem)
}

// seen says whether a block was asked for not long ago, and notes that it is.
func (c *readCache) seen(key blockKey) bool {
	h := uint64(key) * 0x9e3779b97f4a7c15
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	b := &c.ghost[(h>>32)*uint64(len(c.ghost))>>32]
	mark := h&0xffff | 1
	for i := range 4 {
		if *b>>(16*i)&0xffff == mark {
			low := uint64(1)<<(16*i) - 1
			*b = *b&low | *b>>16&^low // it goes
			return true
		}
	}
	*b = *b<<16 | mark
	return false
}

// timeOf is when the store's contents at a block, or near, changed last.
func (c *readCache) timeOf(slot, block uint32) *Ticket {
	h := (slot<<6 | block/granule) * 0x9e3779b1
	return &c.changed[h>>18]
}

// change notes that the store is being changed, or about to be, in a range: reads begun before may
// bring something older.
func (c *readCache) change(slot, block, n uint32) {
	c.now++
	for b := block / granule; b <= (block+n-1)/granule; b++ {
		*c.timeOf(slot, b*granule) = c.now
	}
}

// Ticket is taken when a block was looked up and not found, before it is read from the store.
func (l *Log) Ticket() Ticket { return l.cache.now }

// StoreChanged says that the store's contents of n blocks were changed other than by WriteBack: a
// zeroed range reads as zeros now, a slot has another chunk. Copies of what it was are dropped;
// writes newer than that stay.
func (l *Log) StoreChanged(slot, block, n uint32) {
	l.cache.change(slot, block, n)
	for i := range n {
		if p, ok := l.idx.get(keyOf(slot, block+i)); ok && !l.dirty(p) {
			l.idx.evict(p)
		}
	}
}

// Admit offers the log what was read from the store: n blocks (at most MaxData bytes) of a slot
// with their checksums, which were compared. t was taken when they were looked up. Data and
// checksums are copied at once, if at all: what is read for the first time isn't kept, nor what
// may have changed meanwhile, nor anything while the log is busy with writes.
func (l *Log) Admit(t Ticket, slot, block uint32, n int, data, crcs []byte) {
	if n <= 0 || len(data) != n*blockSize || len(crcs) != 4*n || n > MaxData/blockSize ||
		slot >= l.o.MaxSlots || block+uint32(n) > dataplane.BlocksPerChunk {
		panic(fmt.Sprintf("ssdcache: offered slot %d block %d, %d blocks in %d bytes, %d of CRCs",
			slot, block, n, len(data), len(crcs)))
	}
	if !l.cache.open() {
		return
	}
	for i := 0; i < n; {
		j := i
		for j < n && l.cache.wants(t, slot, block+uint32(j)) {
			j++
		}
		if j > i && !l.cache.keep(slot, block+uint32(i), data[i*blockSize:j*blockSize],
			crcs[4*i:4*j]) {
			return
		}
		l.stats.Admitted += uint64(j - i)
		i = j + 1 // j isn't wanted
	}
}

// open says whether the log has time and room for the cache.
func (c *readCache) open() bool {
	l := c.l
	return l.err == nil && l.closing == nil && l.waiting == 0 && l.ready >= l.head+l.reserve &&
		(l.open == nil || l.open.clean < cleanPerBatch) && l.Pressure() < admitPressure
}

func (c *readCache) wants(t Ticket, slot, block uint32) bool {
	key := keyOf(slot, block)
	_, in := c.l.idx.get(key)
	if in || *c.timeOf(slot, block) > t {
		return false
	}
	return c.seen(key) || c.l.head < c.lap
}

// keep appends clean blocks. It is false if they found no place.
func (c *readCache) keep(slot, block uint32, data, crcs []byte) bool {
	l, a := c.l, &c.app
	a.Record = Record{Kind: Clean, Slot: slot, Offset: block * blockSize, Length: uint32(len(data))}
	a.Data, a.CRCs = data, crcs
	defer func() { a.Data, a.CRCs = nil, nil }()
	b, err := l.roomFor(a)
	if err != nil {
		return false
	}
	l.env.AtTurnEnd(&l.turn)
	first := b.start + Pos(b.h.headBlocks+b.h.dataBlocks)
	l.addEntry(b, a)
	l.addData(b, a)
	b.clean += a.blocks()
	for i := range a.blocks() {
		l.idx.state[first+Pos(i)] = isClean
	}
	return true
}

// touch counts reads of n blocks from p on.
func (x *index) touch(p Pos, n int) {
	for i := range n {
		if s := &x.state[p+Pos(i)]; *s&heatMask < heatMask {
			*s++
		}
	}
}

// rescue looks through the segments that will be used again next. It is called at the end of turns.
func (c *readCache) rescue() {
	l := c.l
	for !c.working && l.err == nil && l.closing == nil && l.draining == nil {
		c.next = max(c.next, l.ready+1)
		if c.next > l.head+l.reserve+rescueAhead || c.next >= l.tail+l.segs {
			return
		}
		c.next++
		if l.Pressure() < admitPressure {
			c.choose(l.place(c.next-1, 0))
			c.read()
		}
	}
}

// choose lists the blocks of a segment, which begins at base, that are to be kept.
func (c *readCache) choose(base Pos) {
	l := c.l
	var count [heatMask + 1]int
	for i := range l.segBlocks {
		if p := base + Pos(i); l.idx.place[p].owner != 0 {
			count[l.idx.state[p]&heatMask]++
		}
	}
	least, sum := heatMask+1, 0
	for least > 1 && sum+count[least-1] <= int(rescueShare*float64(l.segBlocks)) {
		least--
		sum += count[least]
	}
	c.list, c.at = c.list[:0], 0
	for i := range l.segBlocks {
		if p := base + Pos(i); l.idx.place[p].owner != 0 && int(l.idx.state[p]&heatMask) >= least {
			c.list = append(c.list, p)
		}
	}
}

// read reads the next piece of the list.
func (c *readCache) read() {
	l := c.l
	c.working = false
	if c.at == len(c.list) {
		return
	}
	if c.buf = l.pool.Get(rescuePiece * blockSize); c.buf == nil {
		return
	}
	c.working, c.first, c.reading = true, c.at, 1
	for ; c.at < len(c.list) && c.at-c.first < rescuePiece; c.at++ {
		i := c.at - c.first
		op := &c.reads[i]
		if _, ok := l.idx.current(c.list[c.at]); !ok {
			c.list[c.at] = 0 // position 0 is never a block's
			continue
		}
		op.Pos, op.Blocks = c.list[c.at], 1
		op.Buf = c.buf.Bytes()[i*blockSize:][:blockSize]
		c.reading++
		l.Read(op)
	}
	if c.reading--; c.reading == 0 {
		c.keepPiece()
	}
}

func (c *readCache) rescued(op *ReadOp) {
	if op.Err != nil {
		c.list[c.first+c.indexOf(op)] = 0
	}
	op.Buf = nil
	if c.reading--; c.reading == 0 {
		c.keepPiece()
	}
}

func (c *readCache) indexOf(op *ReadOp) int {
	return int((uintptr(unsafe.Pointer(op)) - uintptr(unsafe.Pointer(&c.reads[0]))) /
		unsafe.Sizeof(c.reads[0]))
}

// keepPiece appends what was read, if it is still current and intact, and goes on.
func (c *readCache) keepPiece() {
	l := c.l
	l.env.AtTurnEnd(&l.turn)
	var crc [4]byte
	for i := c.first; i < c.at && l.err == nil && l.closing == nil; i++ {
		p := c.list[i]
		key, ok := l.idx.current(p)
		if p == 0 || !ok || l.dirty(p) || l.ready <= l.head {
			continue
		}
		data := c.buf.Bytes()[(i-c.first)*blockSize:][:blockSize]
		sum := l.idx.crc(p)
		if dataplane.CRC(data) != sum {
			l.idx.evict(p) // damaged in the log; the store has it
			continue
		}
		heat := l.idx.state[p] & heatMask
		le.PutUint32(crc[:], sum)
		if !c.keep(key>>14, key&(1<<14-1), data, crc[:]) {
			break
		}
		now, _ := l.idx.get(key)
		l.idx.state[now] = isClean | heat/2
		l.stats.Rescued++
	}
	c.buf.Release()
	c.buf = nil
	if l.err != nil || l.closing != nil {
		c.working = false
		return
	}
	c.read()
}
