package chunk

import (
	"encoding/binary"
	"math/bits"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// maxReadBlocks is the most blocks of one blockRead: a part that isn't aligned touches 17.
const maxReadBlocks = dataplane.PartSize/dataplane.BlockSize + 1

// maxReadPages is the most CRC pages of one blockRead.
const maxReadPages = 2

// blockRead gathers consecutive blocks of a replica from the log and the store, and checks each
// against its checksum. It is embedded in what needs it, and used again and again.
//
//  1. Each block is looked up: in the log; a word of zeros; or in the store. CRC pages that aren't
//     in memory are waited for, then all is looked up anew. Where one of two pages makes room for
//     the other, the blocks of each are read by themselves.
//  2. Runs of neighbours are read, all at once.
//  3. Each block's checksum is compared with the one it was looked up with. A mismatch mostly means
//     that the block was moved or overwritten meanwhile: look it up again. One that stays is bad.
//
// What is looked up after the first moment may be of a write that came meanwhile: not committed, or
// a ZERO that has taken the newest content out of the log's index and not cleared its word yet, so
// that something older shows. Such a read is marked unsure.
type blockRead struct {
	sh   *Shard
	r    *replica // nil: not at work
	n    int      // blocks
	from uint32   // first block
	buf  []byte   // n blocks, page-aligned, out of a pool
	done func(*blockRead)
	once bool // read for recovery, not by a client: nothing for the read cache

	crcs [maxReadBlocks]uint32 // the result, where bad isn't set
	bad  uint32                // bit per block: doesn't match, or can't be read
	lost uint32                // bit per block: its checksum was lost, too

	began   int64
	ticket  ssdcache.Ticket // of the lookup
	slot    uint32          // at the lookup
	todo    uint32          // bit per block: not finished yet, and in this round
	rest    uint32          // bit per block: left to a later round
	logged  uint32          // bit per block: in the log at pos
	words   [maxReadBlocks]uint32
	pos     [maxReadBlocks]ssdcache.Pos
	later   bool // not the first lookup
	unsure  bool // looked up again, with writes above the commit mark on the blocks
	tries   int
	waits   int // for pages
	pending int
	wait    pageWait
}

// readPiece is one run of neighbouring blocks being read.
type readPiece struct {
	br   *blockRead
	disk uring.DiskOp
	log  ssdcache.ReadOp
	mem  [1][]byte
	from int64 // when it began
	next *readPiece
}

// start reads blocks [from, from+n) of r into buf. done may be called at once.
func (b *blockRead) start(r *replica, from uint32, n int, buf []byte) {
	if n <= 0 || n > maxReadBlocks || len(buf) != n*dataplane.BlockSize {
		panic("chunk: read of a wrong size")
	}
	b.r, b.from, b.n, b.buf = r, from, n, buf
	b.todo, b.bad, b.lost, b.tries = 1<<n-1, 0, 0, 0
	b.rest, b.waits = 0, 0
	b.later, b.unsure, b.began = false, false, b.sh.env.Now()
	r.refs++
	b.round()
}

// round looks up all blocks that aren't finished, and reads them.
func (b *blockRead) round() {
	b.ticket, b.slot = b.sh.log.Ticket(), b.r.slot
	if b.later && !b.unsure {
		b.unsure = b.r.hidden(b.from*dataplane.BlockSize, uint32(b.n)*dataplane.BlockSize) != 0
	}
	b.later = true
	if !b.lookUp() {
		return
	}
	if !b.once {
		logged := bits.OnesCount32(b.logged)
		b.sh.gauges.fromLog += uint64(logged)
		b.sh.gauges.fromStore += uint64(bits.OnesCount32(b.todo) - logged)
	}
	b.pending = 1 // so that no completion finishes the round before all was submitted
	for i := 0; i < b.n; {
		if b.todo&(1<<i) == 0 {
			i++
			continue
		}
		i = b.submit(i)
	}
	b.pending--
	if b.pending == 0 {
		b.check()
	}
}

// lookUp finds where the blocks are. It is false if a CRC page has to be loaded first.
func (b *blockRead) lookUp() bool {
	b.logged = 0
	if b.r.slot == noSlot {
		b.zeros(b.todo)
		return true
	}
	sh := b.sh
	for todo := b.todo; todo != 0; todo &= todo - 1 {
		i := bits.TrailingZeros32(todo)
		block := b.from + uint32(i)
		if pos, ok := sh.log.Lookup(b.r.slot, block); ok {
			b.logged |= 1 << i
			b.pos[i] = pos
			b.words[i] = sh.log.CRC(pos)
			continue
		}
		page := b.r.slot*pagesPerSlot + block/wordsPerPage
		p := sh.store.cache.get(page)
		if p == nil {
			// Two pages that were waited for were there one after the other, but not together: with
			// many such reads they might never be.
			if found := b.todo & (1<<i - 1); found != 0 && b.waits >= maxReadPages {
				b.todo, b.rest = found, b.todo&^found
				return true
			}
			b.waits++
			b.wait.page = page
			sh.store.cache.want(&b.wait)
			return false
		}
		switch w := p.word(block); w {
		case wordZeros:
			b.zeros(1 << i)
		case wordUnknown:
			b.todo &^= 1 << i
			b.bad |= 1 << i
			b.lost |= 1 << i
		default:
			b.words[i] = w
		}
	}
	return true
}

func (b *blockRead) zeros(mask uint32) {
	b.todo &^= mask
	for ; mask != 0; mask &= mask - 1 {
		i := bits.TrailingZeros32(mask)
		clear(b.block(i))
		b.crcs[i] = zeroCRC
	}
}

func (b *blockRead) block(i int) []byte {
	return b.buf[i*dataplane.BlockSize : (i+1)*dataplane.BlockSize]
}

// submit reads the run of neighbours that starts with block i, and returns the block after it.
func (b *blockRead) submit(i int) int {
	sh := b.sh
	inLog := b.logged >> i & 1
	j := i + 1
	for j < b.n && b.todo&(1<<j) != 0 && b.logged>>j&1 == inLog &&
		(inLog == 0 || b.pos[j] == b.pos[j-1]+1) {
		j++
	}
	p := sh.pieces
	if p == nil {
		p = sh.newPiece()
	} else {
		sh.pieces = p.next
	}
	p.br, p.from = b, sh.env.Now()
	b.pending++
	mem := b.buf[i*dataplane.BlockSize : j*dataplane.BlockSize]
	if inLog != 0 {
		p.log.Pos, p.log.Blocks, p.log.Buf = b.pos[i], j-i, mem
		sh.log.Read(&p.log)
		return j
	}
	p.mem[0] = mem
	p.disk.Offset = sh.store.sb.block(b.r.slot, b.from+uint32(i))
	sh.store.disk.Submit(&p.disk)
	return j
}

func (sh *Shard) newPiece() *readPiece {
	p := &readPiece{}
	p.disk.Kind = uring.DiskRead
	p.disk.Bufs = p.mem[:]
	p.disk.Done = func(op *uring.DiskOp) { sh.pieceDone(p, op.Err) }
	p.log.Done = func(op *ssdcache.ReadOp) { sh.pieceDone(p, op.Err) }
	return p
}

func (sh *Shard) pieceDone(p *readPiece, err error) {
	b, now := p.br, sh.env.Now()
	sh.gauges.reads.add(now - p.from)
	if p.mem[0] != nil {
		sh.store.moved = now
	}
	p.br, p.mem[0], p.log.Buf = nil, nil, nil
	p.next, sh.pieces = sh.pieces, p
	if err != nil {
		// What wasn't read doesn't match; the block is repaired from another member.
		sh.stats.IOErrors++
		sh.slog.Warn("read failed", "chunk", b.r.id, "err", err)
	}
	if b.pending--; b.pending == 0 {
		b.check()
	}
}

// check compares what was read with the checksums it was looked up with.
func (b *blockRead) check() {
	fresh := uint32(0) // from the store, and right
	for todo := b.todo; todo != 0; todo &= todo - 1 {
		i := bits.TrailingZeros32(todo)
		crc := dataplane.CRC(b.block(i))
		if b.sh.canary.NoCRC || b.logged>>i&1 != 0 && crc == b.words[i] ||
			b.logged>>i&1 == 0 && wordMatches(b.words[i], crc) {
			b.crcs[i] = crc
			b.todo &^= 1 << i
			fresh |= 1 << i &^ b.logged
		}
	}
	b.offer(fresh)
	if b.todo != 0 && b.tries < readRetries {
		b.tries++
		b.todo |= b.rest
		b.rest = 0
		b.round()
		return
	}
	b.bad |= b.todo
	b.todo = b.rest
	if b.rest != 0 {
		b.rest, b.tries = 0, 0
		b.round()
		return
	}
	r := b.r
	b.r = nil
	b.sh.release(r)
	b.done(b)
}

// offer gives the read cache what came from the store.
func (b *blockRead) offer(fresh uint32) {
	if fresh == 0 || b.once || b.sh.noReadCache || b.slot == noSlot || b.slot != b.r.slot || b.r.gone {
		return
	}
	var crcs [dataplane.PartSize / dataplane.BlockSize * 4]byte
	for i := 0; i < b.n; {
		j := i
		for ; j < b.n && fresh>>j&1 != 0 && j-i < len(crcs)/4; j++ {
			binary.LittleEndian.PutUint32(crcs[4*(j-i):], b.crcs[j])
		}
		if j == i {
			i++
			continue
		}
		b.sh.log.Admit(b.ticket, b.slot, b.from+uint32(i), j-i,
			b.buf[i*dataplane.BlockSize:j*dataplane.BlockSize], crcs[:4*(j-i)])
		i = j
	}
}

// unwritten says whether blocks [from, from+n) of a replica, all within one CRC page, are known to
// be zeros without reading anything: none is in the log, and their words say so. False: they may be
// anything.
func (sh *Shard) unwritten(r *replica, from, n uint32) bool {
	if r.slot == noSlot {
		return true
	}
	p := sh.store.cache.get(r.slot*pagesPerSlot + from/wordsPerPage)
	if p == nil || !isZero(p.mem[from%wordsPerPage*4:][:n*4]) {
		return false
	}
	for b := from; b < from+n; b++ {
		if _, logged := sh.log.Lookup(r.slot, b); logged {
			return false
		}
	}
	return true
}
