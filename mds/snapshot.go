package mds

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// A snapshot is a sequence of blocks:
//
//	offset size field
//	     0    1 type
//	     1    1 version of the type's layout (1; 2 for chunk records)
//	     2    2 reserved, zero
//	     4    4 length n of the payload, at most 1 MiB
//	     8    n payload
//	   8+n    4 CRC32C of the previous block's CRC (4 bytes, zero for the first) and bytes 0 to 8+n
//
// so a block that is missing, moved or cut off is noticed. Integers are little endian, strings
// and byte slices have a u32 length in front. In this order:
//
//	type  blocks  payload
//	   1  one     head: "PSMDSNAP", format version u32 (1), cluster id 16, cluster name, time i64,
//	              next file id u64, next event id u64, configuration version u64,
//	              slots of the chunk table u64, head of its free list u64
//	   2  any     files: count u32, then per file what putFile writes
//	   3  any     chunk servers: count u32, then per server what putCS writes
//	   4  any     configuration: count u32, then key, value, version u64
//	   5  any     events, oldest first: count u32, then id u64, time i64, severity u8, source,
//	              code, message
//	   6  any     remembered results, oldest first: count u32, then peer u64, request u64,
//	              kind u16, message, file id u64
//	   7  any     chunk records: number of the first page u64, then pages of 64 records, packed
//	              (pack.go); in version 1 of this layout as they are in memory
//	   9  one     last lease token u64, last fence number u64; these two blocks are there only if
//	              some file ever had a lease
//	  10  any     leases: file id, holder, token, fence, number of the fence u64, time of the grant
//	              i64, released in disorder u8, host, mount, revoked by
//	  15  one     end: numbers of files, servers, events, results and pages, u64 each
//
// Directories, slots of files and chunks per server are rebuilt from these.
const (
	snapMagic   = "PSMDSNAP"
	snapVersion = 1

	blockHead      = 1
	blockFiles     = 2
	blockCS        = 3
	blockConfig    = 4
	blockEvents    = 5
	blockDedupe    = 6
	blockPages     = 7
	blockLeaseHead = 9
	blockLeases    = 10
	blockEnd       = 15

	maxBlock      = 1 << 20
	softBlock     = 256 << 10 // a block of small things is written when it is that long
	pagesPerBlock = 16
)

// Snapshot is the state at one moment, for writing it out while commands go on.
type Snapshot struct {
	s      *State
	head   encoder
	files  []*filePage
	cs     []*CS
	config []configEntry
	events fifo[control.Event]
	dedupe fifo[dedupeEntry]
	table  *Capture
	leases leaseState
}

// Capture remembers the state as it is. Its cost is a few bytes per 64 files or chunks. One at a
// time: an open snapshot must be released before the next. Hold the lock that guards the state.
func (s *State) Capture() (*Snapshot, error) {
	table := s.table.Capture()
	if table == nil {
		return nil, dataplane.E("take a snapshot", dataplane.Overloaded,
			errors.New("another snapshot is being written"))
	}
	sn := &Snapshot{s: s, table: table, files: s.files.capture(), config: s.config,
		leases: s.leases,
		cs:     append([]*CS(nil), s.cs...), events: s.events.capture(), dedupe: s.dedupe.capture()}
	e := &sn.head
	e.b = append(e.b, snapMagic...)
	e.u32(snapVersion)
	e.b = append(e.b, s.clusterID[:]...)
	e.str(s.clusterName)
	e.i64(s.nowNs)
	e.u64(uint64(s.nextFile))
	e.u64(s.nextEvent)
	e.u64(s.configVer)
	e.u64(table.slots)
	e.u64(table.freeHead)
	return sn, nil
}

// Release gives the snapshot's memory back. Hold the lock that guards the state.
func (sn *Snapshot) Release() {
	if sn.s == nil {
		return
	}
	sn.s.files.release()
	sn.table.Release()
	*sn = Snapshot{}
}

// blockVersion is the newest version of a type's layout, and the one that is written.
func blockVersion(typ uint8) uint8 {
	if typ == blockPages {
		return 2
	}
	return 1
}

// blockWriter writes blocks.
type blockWriter struct {
	w      io.Writer
	crc    uint32
	counts [5]uint64 // files, servers, events, results, pages
}

func (w *blockWriter) block(typ uint8, payload []byte) error {
	assert(len(payload) <= maxBlock, "snapshot block too long", typ, len(payload))
	var prev [4]byte
	head := [8]byte{typ, blockVersion(typ)}
	binary.LittleEndian.PutUint32(prev[:], w.crc)
	binary.LittleEndian.PutUint32(head[4:], uint32(len(payload)))
	w.crc = dataplane.CRCAdd(dataplane.CRCAdd(dataplane.CRC(prev[:]), head[:]), payload)
	var tail [4]byte
	binary.LittleEndian.PutUint32(tail[:], w.crc)
	for _, p := range [][]byte{head[:], payload, tail[:]} {
		if _, err := w.w.Write(p); err != nil {
			return dataplane.E("write snapshot", dataplane.IOError, err)
		}
	}
	return nil
}

// list writes things that were counted into blocks of the type.
type listWriter struct {
	w   *blockWriter
	typ uint8
	e   encoder
	n   uint32
}

func (l *listWriter) next() *encoder {
	if l.n == 0 {
		l.e.b = append(l.e.b[:0], 0, 0, 0, 0)
	}
	l.n++
	return &l.e
}

func (l *listWriter) flush(min int) error {
	if l.n == 0 || len(l.e.b) < min {
		return nil
	}
	binary.LittleEndian.PutUint32(l.e.b, l.n)
	l.n = 0
	return l.w.block(l.typ, l.e.b)
}

// Write writes the snapshot. It may run beside Apply.
func (sn *Snapshot) Write(out io.Writer) error {
	buf := bufio.NewWriterSize(out, 128<<10)
	w := &blockWriter{w: buf}
	if err := w.block(blockHead, sn.head.b); err != nil {
		return err
	}
	steps := []func(*blockWriter) error{sn.writeFiles, sn.writeRegistry, sn.writeEvents,
		sn.writeDedupe, sn.writePages, sn.writeLeases}
	for _, step := range steps {
		if err := step(w); err != nil {
			return err
		}
	}
	var e encoder
	for _, n := range w.counts {
		e.u64(n)
	}
	if err := w.block(blockEnd, e.b); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return dataplane.E("write snapshot", dataplane.IOError, err)
	}
	return nil
}

func (sn *Snapshot) writeFiles(w *blockWriter) error {
	l := listWriter{w: w, typ: blockFiles}
	for _, p := range sn.files {
		for i := range p {
			if p[i].id == 0 {
				continue
			}
			w.counts[0]++
			putFile(l.next(), &p[i])
			if err := l.flush(softBlock); err != nil {
				return err
			}
		}
	}
	return l.flush(0)
}

func (sn *Snapshot) writeRegistry(w *blockWriter) error {
	l := listWriter{w: w, typ: blockCS}
	for _, c := range sn.cs {
		if c == nil {
			continue
		}
		w.counts[1]++
		putCS(l.next(), c)
		if err := l.flush(softBlock); err != nil {
			return err
		}
	}
	if err := l.flush(0); err != nil {
		return err
	}
	l.typ = blockConfig
	for _, c := range sn.config {
		e := l.next()
		e.str(c.key)
		e.str(c.value)
		e.u64(c.version)
		if err := l.flush(softBlock); err != nil {
			return err
		}
	}
	return l.flush(0)
}

func (sn *Snapshot) writeEvents(w *blockWriter) (err error) {
	l := listWriter{w: w, typ: blockEvents}
	sn.events.each(func(ev *control.Event) bool {
		w.counts[2]++
		e := l.next()
		e.u64(ev.ID)
		e.i64(ev.TimeNs)
		e.u8(uint8(ev.Severity))
		e.str(ev.Source)
		e.str(ev.Code)
		e.str(ev.Message)
		err = l.flush(softBlock)
		return err == nil
	})
	if err != nil {
		return err
	}
	return l.flush(0)
}

func (sn *Snapshot) writeDedupe(w *blockWriter) (err error) {
	l := listWriter{w: w, typ: blockDedupe}
	sn.dedupe.each(func(d *dedupeEntry) bool {
		w.counts[3]++
		e := l.next()
		e.u64(d.key.peer)
		e.u64(d.key.req)
		e.u16(uint16(d.kind))
		e.str(d.msg)
		e.u64(uint64(d.file))
		err = l.flush(softBlock)
		return err == nil
	})
	if err != nil {
		return err
	}
	return l.flush(0)
}

func (sn *Snapshot) writePages(w *blockWriter) error {
	var e encoder
	for first := 0; first < sn.table.Pages(); first += pagesPerBlock {
		e.b = e.b[:0]
		e.u64(uint64(first))
		for i := first; i < min(first+pagesPerBlock, sn.table.Pages()); i++ {
			p := sn.table.Page(i)
			for k := range p {
				if !p[k].intact() {
					return errCorrupt("chunk record %d in memory: its checksum doesn't match",
						i*recordsPerPage+k)
				}
			}
			e.b = packPage(e.b, p)
			w.counts[4]++
		}
		if err := w.block(blockPages, e.b); err != nil {
			return err
		}
	}
	return nil
}

// putFile writes what isn't derived of a file.
func putFile(e *encoder, f *file) {
	e.u64(uint64(f.id))
	e.u64(uint64(f.parent))
	e.u8(uint8(f.typ))
	e.u32(f.mode)
	e.u32(f.uid)
	e.u32(f.gid)
	e.u64(f.size)
	e.i64(f.atime)
	e.i64(f.mtime)
	e.i64(f.ctime)
	putPolicy(e, f.policy)
	e.str(f.name)
	e.str(f.target)
	e.u32(uint32(len(f.xattrs)))
	for _, x := range f.xattrs {
		e.str(x.name)
		e.bytes(x.value)
	}
}

func getFile(d *decoder) file {
	f := file{id: dataplane.FileID(d.u64()), parent: dataplane.FileID(d.u64())}
	f.typ = control.FileType(d.u8())
	f.mode, f.uid, f.gid = d.u32(), d.u32(), d.u32()
	f.size = d.u64()
	f.atime, f.mtime, f.ctime = d.i64(), d.i64(), d.i64()
	f.policy = getPolicy(d)
	f.name, f.target = d.str(), d.str()
	for range d.count(8) {
		f.xattrs = append(f.xattrs, xattr{d.str(), d.bytes()})
	}
	if f.typ == control.TypeDir {
		f.dir = &dirIndex{}
	}
	return f
}

// blockReader reads blocks.
type blockReader struct {
	r   io.Reader
	crc uint32
	buf []byte
}

// block is what a snapshot consists of.
type block struct {
	typ, version uint8
	payload      []byte // valid until the next one is read
}

// next returns the next block.
func (r *blockReader) next() (block, error) {
	var head [8]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return block{}, errCorrupt("snapshot is cut off: %v", err)
	}
	n := binary.LittleEndian.Uint32(head[4:])
	if n > maxBlock {
		return block{}, errCorrupt("snapshot block of %d bytes", n)
	}
	if cap(r.buf) < int(n)+4 {
		r.buf = make([]byte, max(int(n)+4, min(maxBlock+4, 2*cap(r.buf))))
	}
	b := r.buf[:n+4]
	if _, err := io.ReadFull(r.r, b); err != nil {
		return block{}, errCorrupt("snapshot is cut off: %v", err)
	}
	var prev [4]byte
	binary.LittleEndian.PutUint32(prev[:], r.crc)
	r.crc = dataplane.CRCAdd(dataplane.CRCAdd(dataplane.CRC(prev[:]), head[:]), b[:n])
	if r.crc != binary.LittleEndian.Uint32(b[n:]) {
		return block{}, errCorrupt("checksum of a snapshot block of type %d", head[0])
	}
	if head[1] == 0 || head[1] > blockVersion(head[0]) || head[2]|head[3] != 0 {
		return block{}, dataplane.E("read snapshot", dataplane.NotSupported,
			fmt.Errorf("block of type %d has version %d, newer than this program", head[0],
				head[1]))
	}
	return block{head[0], head[1], b[:n]}, nil
}
