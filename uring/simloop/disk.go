package simloop

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"syscall"
	"unsafe"

	"pstorage/uring"
)

const (
	sector   = 512
	pageSize = 4096
)

// DiskOptions are a disk's speed. Times are in nanoseconds; zero values take the defaults.
type DiskOptions struct {
	ReadLatency  int64 // least time of a read; default 80 µs
	WriteLatency int64 // of a write; default 40 µs
	SyncLatency  int64 // of a flush, also added to DiskWriteSync; default 150 µs
	// Jitter is the most that is added at random to each operation, so that they complete out of
	// order; default: twice the operation's latency. Negative: none.
	Jitter int64
	PerKiB int64 // added per KiB transferred; default 300 ns
}

// Fault is what Disk.Fault decides for one operation. The zero value is no fault.
type Fault struct {
	Err      error // the operation fails with it; a write may have reached some sectors
	Lost     bool  // a write or flush reports success and does nothing
	Misplace int64 // a write lands, a read comes from, this many bytes further
	Flip     bool  // one random bit of what is written or read changes
	Torn     bool  // a write reports success and reaches only some sectors
	Delay    int64 // ns more
}

// page is 4096 bytes of a disk: what reads see, what a power cut leaves for sure, and for each
// sector the number of the write that the durable bytes are from, so that an older unsynced write
// can't come back over it. The contents pointed to are shared and never change; nil: zeros.
type page struct {
	cur, durable *[pageSize]byte
	own          bool // durable isn't shared: it may be changed in place
	from         [pageSize / sector]uint64
}

// zeros is the content of pages that zeros were written to.
var zeros [pageSize]byte

// leaf is a row of pages. Disks are sparse: most leaves are never made.
type leaf [leafPages]page

const leafPages = 64

// pending is a completed write that isn't durable.
type pending struct {
	nr   uint64 // order of completion
	off  int64
	data []byte // never changed; nil: n zero bytes
	n    int64
}

// Disk is a simulated disk. It outlives its Env: after a crash it is attached to the next one.
type Disk struct {
	// Fault, if set, is asked once for every operation when it is submitted.
	Fault func(op *uring.DiskOp) Fault
	// Ops counts operations submitted, by kind.
	Ops [uring.DiskAllocate + 1]int

	env    *Env
	mem    *arena // of contents
	opt    DiskOptions
	rng    *rand.Rand
	size   int64
	align  int
	leaves []*leaf
	pend   []pending
	nr     uint64 // of the last completed write
	flying []*diskTask
	free   []*diskTask
	failed []badRange
}

type badRange struct {
	off, n int64
	kinds  uint32
	err    error
}

type diskTask struct {
	d    *Disk
	env  *Env
	op   *uring.DiskOp
	f    Fault
	mark uint64 // flush: covers writes up to this one
	sum  uint64 // of a write's memory at submission
}

var _ uring.Disk = (*Disk)(nil)

// NewDisk returns a disk of size bytes, all zeros, attached to e. align is 512 or 4096.
func NewDisk(e *Env, size int64, align int, o DiskOptions) *Disk {
	if size%pageSize != 0 || align != 512 && align != 4096 {
		panic(fmt.Sprintf("simloop: disk of %d bytes, alignment %d", size, align))
	}
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.ReadLatency, 80_000)
	def(&o.WriteLatency, 40_000)
	def(&o.SyncLatency, 150_000)
	def(&o.PerKiB, 300)
	d := &Disk{mem: &e.sim.mem, opt: o, size: size, align: align}
	d.leaves = make([]*leaf, (size+leafPages*pageSize-1)/(leafPages*pageSize))
	d.rng = e.sim.Rand(fmt.Sprintf("disk of %s at %d", e.name, e.sim.seq))
	d.Attach(e)
	return d
}

// Attach gives the disk to the (next) process that uses it. When that is killed, its operations in
// flight happen wholly, partly or not at all, and aren't reported.
func (d *Disk) Attach(e *Env) {
	d.abandon()
	d.env = e
	e.onKill = append(e.onKill, func() {
		if d.env == e {
			d.abandon()
		}
	})
}

// Size implements uring.Disk.
func (d *Disk) Size() int64 { return d.size }

// Align implements uring.Disk.
func (d *Disk) Align() int { return d.align }

// Close implements uring.Disk.
func (d *Disk) Close() error {
	if len(d.flying) > 0 {
		panic(fmt.Sprintf("simloop: disk closed with %d operations in flight", len(d.flying)))
	}
	return nil
}

// InFlight is how many operations are submitted and not completed.
func (d *Disk) InFlight() int { return len(d.flying) }

// FailRange makes every operation of the given kinds that touches [off, off+n) fail with err, until
// Heal is called. Flushes have no range: they fail if kinds has DiskSync.
func (d *Disk) FailRange(off, n int64, err error, kinds ...uring.OpKind) {
	b := badRange{off: off, n: n, err: err}
	for _, k := range kinds {
		b.kinds |= 1 << k
	}
	d.failed = append(d.failed, b)
}

// Heal forgets all FailRanges.
func (d *Disk) Heal() { d.failed = nil }

// FlipBit changes one bit of what is stored: bit rot.
func (d *Disk) FlipBit(off int64, bit uint) {
	var b [1]byte
	d.ReadAt(b[:], off)
	b[0] ^= 1 << (bit & 7)
	d.WriteAt(b[:], off)
}

// ReadAt copies what is stored at off, at once: for tests.
func (d *Disk) ReadAt(p []byte, off int64) {
	for len(p) > 0 {
		n := min(len(p), pageSize-int(off%pageSize))
		if pg := d.look(off); pg != nil && pg.cur != nil {
			copy(p[:n], pg.cur[off%pageSize:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// WriteAt changes what is stored at off, at once and durably: for tests.
func (d *Disk) WriteAt(p []byte, off int64) {
	p = append([]byte(nil), p...)
	d.store(off, p, int64(len(p)))
	for len(p) > 0 {
		n := min(len(p), pageSize-int(off%pageSize))
		pg := d.page(off)
		pg.durable, pg.own = d.changed(pg.durable, int(off%pageSize), p[:n], n), false
		p, off = p[n:], off+int64(n)
	}
}

// look returns the page at off, nil if there is none.
func (d *Disk) look(off int64) *page {
	i := off / pageSize
	if i/leafPages >= int64(len(d.leaves)) || d.leaves[i/leafPages] == nil {
		return nil
	}
	return &d.leaves[i/leafPages][i%leafPages]
}

// page returns the page at off.
func (d *Disk) page(off int64) *page {
	i := off / pageSize
	for i/leafPages >= int64(len(d.leaves)) {
		d.leaves = append(d.leaves, nil)
	}
	l := d.leaves[i/leafPages]
	if l == nil {
		l = new(leaf)
		d.leaves[i/leafPages] = l
	}
	return &l[i%leafPages]
}

// changed returns the content old with n bytes from at on replaced by those of data (nil: zeros).
// data is shared, not copied, if it covers the page.
func (d *Disk) changed(old *[pageSize]byte, at int, data []byte, n int) *[pageSize]byte {
	switch {
	case n == pageSize && data == nil:
		return &zeros
	case n == pageSize:
		return (*[pageSize]byte)(data)
	case old == nil:
		old = &zeros
	}
	c := d.mem.page()
	*c = *old
	if data == nil {
		clear(c[at : at+n])
	} else {
		copy(c[at:at+n], data)
	}
	return c
}

// Submit implements uring.Disk.
func (d *Disk) Submit(op *uring.DiskOp) {
	d.check(op)
	d.Ops[op.Kind]++
	var t *diskTask
	if n := len(d.free); n > 0 {
		t, d.free = d.free[n-1], d.free[:n-1]
	} else {
		t = new(diskTask)
	}
	*t = diskTask{d: d, env: d.env, op: op, mark: d.nr}
	if d.Fault != nil {
		t.f = d.Fault(op)
	}
	for _, b := range d.failed {
		if b.kinds>>op.Kind&1 == 1 && (op.Kind == uring.DiskSync ||
			op.Offset < b.off+b.n && b.off < op.Offset+opBytes(op)) {
			t.f.Err = b.err
		}
	}
	switch op.Kind {
	case uring.DiskRead:
		for _, b := range op.Bufs {
			spoil(b)
		}
	case uring.DiskWrite, uring.DiskWriteSync:
		t.sum = sum(op)
	}
	if d.env.dead {
		return
	}
	d.flying = append(d.flying, t)
	d.env.sim.push(d.env.sim.now+d.latency(op)+t.f.Delay, d.env, t)
}

func (d *Disk) check(op *uring.DiskOp) {
	a := int64(d.align)
	bad := op.Done == nil || op.Offset < 0 || op.Offset%a != 0 || op.Length%a != 0 ||
		len(op.Bufs) > uring.MaxDiskBufs
	for _, b := range op.Bufs {
		bad = bad || len(b) == 0 || int64(len(b))%a != 0 ||
			uintptr(unsafe.Pointer(&b[0]))%uintptr(a) != 0
	}
	if bad {
		panic(fmt.Sprintf("simloop: disk operation kind %d at %d +%d with %d buffers isn't aligned "+
			"to %d or has no Done", op.Kind, op.Offset, op.Length, len(op.Bufs), a))
	}
}

func (d *Disk) latency(op *uring.DiskOp) int64 {
	l := d.opt.ReadLatency
	switch op.Kind {
	case uring.DiskWrite, uring.DiskDiscard, uring.DiskAllocate:
		l = d.opt.WriteLatency
	case uring.DiskWriteSync:
		l = d.opt.WriteLatency + d.opt.SyncLatency
	case uring.DiskSync:
		l = d.opt.SyncLatency
	}
	j := d.opt.Jitter
	if j == 0 {
		j = 2 * l
	}
	if j > 0 {
		l += d.rng.Int64N(j)
	}
	return l + opBytes(op)/1024*d.opt.PerKiB
}

func opBytes(op *uring.DiskOp) int64 {
	n := op.Length
	for _, b := range op.Bufs {
		n += int64(len(b))
	}
	return n
}

// do completes the operation: on its env's thread.
func (t *diskTask) do() {
	d, op := t.d, t.op
	d.forget(t)
	op.Err = t.f.Err
	switch op.Kind {
	case uring.DiskRead:
		d.completeRead(t)
	case uring.DiskSync:
		if t.f.Err == nil && !t.f.Lost {
			d.sync(t.mark)
		}
	default:
		d.completeWrite(t)
	}
	d.env.sim.Note(uint64(op.Kind)<<56 ^ uint64(op.Offset))
	d.free = append(d.free, t)
	op.Done(op)
}

func (d *Disk) forget(t *diskTask) {
	for i, x := range d.flying {
		if x == t {
			d.flying = append(d.flying[:i], d.flying[i+1:]...)
			return
		}
	}
	panic("simloop: completion of an operation that isn't in flight")
}

func (d *Disk) completeRead(t *diskTask) {
	if t.f.Err != nil {
		return
	}
	off := t.op.Offset + t.f.Misplace
	for _, b := range t.op.Bufs {
		d.ReadAt(b, off)
		off += int64(len(b))
	}
	if t.f.Flip {
		b := t.op.Bufs[d.rng.IntN(len(t.op.Bufs))]
		b[d.rng.IntN(len(b))] ^= 1 << d.rng.IntN(8)
	}
}

func (d *Disk) completeWrite(t *diskTask) {
	op := t.op
	if (op.Kind == uring.DiskWrite || op.Kind == uring.DiskWriteSync) && sum(op) != t.sum {
		panic(fmt.Sprintf("simloop: memory of the write at %d changed in flight", op.Offset))
	}
	switch {
	case t.f.Lost:
		return
	case t.f.Err != nil || t.f.Torn:
		d.tear(op, t.f.Misplace)
		return
	}
	first := d.nr + 1
	d.apply(op, t.f)
	if op.Kind == uring.DiskWriteSync {
		d.syncOnly(first, d.nr)
	}
}

// apply makes the whole write visible, as pending.
func (d *Disk) apply(op *uring.DiskOp, f Fault) {
	off := op.Offset + f.Misplace
	if op.Kind == uring.DiskDiscard || op.Kind == uring.DiskAllocate {
		d.zero(off, op.Length)
		return
	}
	for _, b := range op.Bufs {
		if !f.Flip && allZero(b) {
			d.addPending(off, nil, int64(len(b))) // a log is written in full when it is made
			off += int64(len(b))
			continue
		}
		c := d.mem.get(len(b))
		copy(c, b)
		if f.Flip {
			c[d.rng.IntN(len(c))] ^= 1 << d.rng.IntN(8)
			f.Flip = false
		}
		d.addPending(off, c, int64(len(c)))
		off += int64(len(c))
	}
}

// zero makes [off, +n) zeros, passing over pages that were never written.
func (d *Disk) zero(off, n int64) {
	for end := off + n; off < end; {
		k := min(end-off, pageSize-off%pageSize)
		if pg := d.look(off); pg != nil && (pg.cur != nil || pg.durable != nil) {
			d.addPending(off, nil, k)
		}
		off += k
	}
}

// tear makes some sectors of the write visible, as pending.
func (d *Disk) tear(op *uring.DiskOp, shift int64) {
	off := op.Offset + shift
	if op.Kind == uring.DiskDiscard || op.Kind == uring.DiskAllocate {
		if k := d.rng.Int64N(op.Length/sector+1) * sector; k > 0 {
			d.zero(off, k)
		}
		return
	}
	keep := d.rng.IntN(5) // out of 4: nothing up to everything
	for _, b := range op.Bufs {
		for ; len(b) > 0; b, off = b[sector:], off+sector {
			if d.rng.IntN(4) < keep {
				c := d.mem.get(sector)
				copy(c, b)
				d.addPending(off, c, sector)
			}
		}
	}
}

func (d *Disk) addPending(off int64, data []byte, n int64) {
	d.nr++
	d.store(off, data, n)
	d.pend = append(d.pend, pending{d.nr, off, data, n})
}

// store changes what reads see. Nil data: zeros. data isn't copied.
func (d *Disk) store(off int64, data []byte, n int64) {
	for n > 0 {
		k := min(n, pageSize-off%pageSize)
		p := d.page(off)
		if data == nil {
			p.cur = d.changed(p.cur, int(off%pageSize), nil, int(k))
		} else {
			p.cur = d.changed(p.cur, int(off%pageSize), data[:k], int(k))
			data = data[k:]
		}
		off, n = off+k, n-k
	}
}

// sync makes all writes that completed up to mark durable.
func (d *Disk) sync(mark uint64) { d.syncIf(func(p *pending) bool { return p.nr <= mark }) }

func (d *Disk) syncOnly(first, last uint64) {
	d.syncIf(func(p *pending) bool { return p.nr >= first && p.nr <= last })
}

func (d *Disk) syncIf(covered func(*pending) bool) {
	rest := d.pend[:0]
	for i := range d.pend {
		if p := &d.pend[i]; covered(p) {
			d.makeDurable(p)
		} else {
			rest = append(rest, *p)
		}
	}
	clear(d.pend[len(rest):])
	d.pend = rest
}

func (d *Disk) makeDurable(p *pending) {
	for at := int64(0); at < p.n; {
		k := min(p.n-at, pageSize-(p.off+at)%pageSize)
		if k < pageSize || !d.makePageDurable(p, at) {
			for end := at + k; at < end; at += sector {
				d.makeSectorDurable(p, at)
			}
			continue
		}
		at += k
	}
}

// makePageDurable stores the page at offset at of p; false: a part of it is newer already.
func (d *Disk) makePageDurable(p *pending, at int64) bool {
	pg := d.page(p.off + at)
	for _, nr := range pg.from {
		if nr >= p.nr {
			return false
		}
	}
	for i := range pg.from {
		pg.from[i] = p.nr
	}
	var data []byte
	if p.data != nil {
		data = p.data[at : at+pageSize]
	}
	pg.durable, pg.own = d.changed(nil, 0, data, pageSize), false
	return true
}

// makeSectorDurable stores the sector at offset at of p unless a newer one is durable already.
func (d *Disk) makeSectorDurable(p *pending, at int64) {
	off := p.off + at
	pg := d.page(off)
	s := off % pageSize / sector
	if pg.from[s] >= p.nr {
		return
	}
	pg.from[s] = p.nr
	if !pg.own {
		c := d.mem.page()
		*c = zeros
		if pg.durable != nil {
			*c = *pg.durable
		}
		pg.durable, pg.own = c, true
	}
	if to := pg.durable[off%pageSize:][:sector]; p.data == nil {
		clear(to)
	} else {
		copy(to, p.data[at:])
	}
}

// abandon decides what becomes of the operations in flight whose process is gone.
func (d *Disk) abandon() {
	for _, t := range d.flying {
		t.env = nil
		if t.op.Kind == uring.DiskRead || t.op.Kind == uring.DiskSync || t.f.Lost {
			continue
		}
		d.tear(t.op, t.f.Misplace)
	}
	if len(d.flying) > 0 && !d.env.dead {
		panic("simloop: disk taken from a living process with operations in flight")
	}
	d.flying = d.flying[:0]
}

// PowerCut loses power: of what wasn't durable, any part may survive. The process that uses the
// disk must be dead (Env.Kill) or have nothing in flight; Attach the next one afterwards.
func (d *Disk) PowerCut() {
	d.abandon()
	d.survive(d.rng)
	d.forgetVolatile()
}

// forgetVolatile makes reads see what is durable.
func (d *Disk) forgetVolatile() {
	for _, l := range d.leaves {
		if l != nil {
			for i := range l {
				l[i].cur, l[i].own = l[i].durable, false
			}
		}
	}
}

// CrashClone returns a disk as a power cut at this moment could leave it, chosen by seed, attached
// to e (of any Sim). d itself goes on undisturbed, so one run can be cut at many points.
func (d *Disk) CrashClone(e *Env, seed uint64) *Disk {
	c := &Disk{mem: &e.sim.mem, opt: d.opt, size: d.size, align: d.align, nr: d.nr, env: e,
		rng: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))}
	c.leaves = make([]*leaf, len(d.leaves))
	for i, l := range d.leaves {
		if l != nil {
			for k := range l {
				l[k].own = false
			}
			cp := *l
			c.leaves[i] = &cp
		}
	}
	c.pend = append([]pending(nil), d.pend...)
	for _, t := range d.flying {
		if t.op.Kind != uring.DiskRead && t.op.Kind != uring.DiskSync && !t.f.Lost {
			c.tear(t.op, t.f.Misplace)
		}
	}
	c.survive(c.rng)
	c.forgetVolatile()
	return c
}

// survive picks what is left of the pending writes: by sectors with some probability, by whole
// writes, all, or nothing, so that both fine tears and clean reorderings come up.
func (d *Disk) survive(rng *rand.Rand) {
	style, odds := rng.IntN(8), []int{1, 3, 5, 7}[rng.IntN(4)]
	for i := range d.pend {
		p := &d.pend[i]
		whole := rng.IntN(8) < odds
		switch {
		case style == 0 || style == 2 && !whole || style == 3 && !whole:
		case style <= 3:
			d.makeDurable(p)
		default:
			for at := int64(0); at < p.n; at += sector {
				if rng.IntN(8) < odds {
					d.makeSectorDurable(p, at)
				}
			}
		}
	}
	d.pend = nil
}

// allZero says whether all of b is zero.
func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), pageSize)
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

func sum(op *uring.DiskOp) (h uint64) {
	for _, b := range op.Bufs {
		h = digest(h, b)
	}
	return h
}

// spoil makes memory useless that nobody may look at now: some of each sector, as that is cheap
// and enough to be noticed.
func spoil(b []byte) {
	for len(b) > 0 {
		n := min(len(b), sector)
		copy(b[:n], "\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb\xdb")
		b = b[n:]
	}
}

// ErrIO is what a failing disk says.
const ErrIO = syscall.EIO
