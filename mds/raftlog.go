package mds

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"pstorage/dataplane"
)

// The raft log is a row of segment files, each named by the index of its first entry. A segment
// is a header and records, one behind the other, then zeros (the space is allocated at once, so
// that appending changes no file size):
//
//	header                              record
//	offset size field                   offset size field
//	     0    8 "PSMDRLOG"                   0    4 CRC32C of bytes 4 to the end
//	     8    4 version (1)                  4    4 length n of the data
//	    12    8 first index                  8    8 index
//	    20    4 CRC32C of bytes 0-19        16    8 index of the first record of its batch
//	                                        24    8 term
//	                                        32    8 time of appending, ns since 1970
//	                                        40    1 type
//	                                        41    1 reserved, zero
//	                                        42    2 length m of the extensions
//	                                        44  n+m data, extensions
//
// A batch is written with one write and made durable by one fdatasync before the next begins. So
// after a crash at most the last batch is incomplete, in any way: it is cut off. Damage before an
// intact record of a later batch is corruption, and so is an end below the watermark (see mark):
// both are errors, because to go on would mean to forget what was acknowledged.
const (
	segMagic      = "PSMDRLOG"
	segVersion    = 1
	segHeader     = 24
	segmentSize   = 16 << 20 // bytes
	recHeader     = 44
	maxRecordData = 32 << 20
)

// segment is one file of the log.
type segment struct {
	f     *os.File
	path  string
	size  int64    // bytes allocated at once; a larger batch makes it longer
	first uint64   // index of the first record
	ends  []uint32 // offset of the end of each record
}

func (s *segment) last() uint64 { return s.first + uint64(len(s.ends)) - 1 }

// end returns the offset behind the last record.
func (s *segment) end() uint32 { return s.start(len(s.ends)) }

// start returns the offset of record i.
func (s *segment) start(i int) uint32 {
	if i == 0 {
		return segHeader
	}
	return s.ends[i-1]
}

// raftLog is the log store of raft. One goroutine changes it, any number read.
type raftLog struct {
	dir    string
	size   int64 // of a segment, bytes
	onFail func(error)

	mu     sync.RWMutex // guards what follows
	segs   []*segment   // ascending; the last is appended to; none may be empty but that
	mark   *mark
	failed error // set for ever: a failed write or flush is never retried and believed
	buf    []byte
}

var (
	_ raft.LogStore          = (*raftLog)(nil)
	_ raft.MonotonicLogStore = (*raftLog)(nil)
)

// openRaftLog opens the log in dir, which must exist, and recovers from a crash. New segments get
// size bytes.
func openRaftLog(dir string, size int64, onFail func(error)) (*raftLog, error) {
	l := &raftLog{dir: dir, size: size, onFail: onFail}
	if err := l.open(); err != nil {
		l.close()
		kind := dataplane.KindOf(err)
		if kind == dataplane.Internal {
			kind = dataplane.IOError
		}
		return nil, dataplane.E("open the metadata log in "+dir, kind, err)
	}
	return l, nil
}

func (l *raftLog) open() error {
	paths, err := withSuffix(l.dir, ".log")
	if err != nil {
		return err
	}
	for i, p := range paths {
		s, err := openSegment(p, l.size, i == len(paths)-1)
		if err != nil {
			return err
		}
		if s == nil {
			continue // it was being made when the crash came
		}
		l.segs = append(l.segs, s)
		if i > 0 && l.segs[i-1].last()+1 != s.first {
			return errCorrupt("segment %s doesn't follow entry %d", p, l.segs[i-1].last())
		}
	}
	if l.mark, err = openMark(l.dir, l.lastIndex()); err != nil {
		return err
	}
	return nil
}

// withSuffix lists what in dir has a name that ends so, in the order of names. The name of dir may
// be any: it is no pattern.
func withSuffix(dir, suffix string) (paths []string, err error) {
	list, err := os.ReadDir(dir)
	for _, e := range list {
		if strings.HasSuffix(e.Name(), suffix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, err
}

// openSegment reads a segment. Only the newest one may have a torn end, which is cut off, or no
// header, which gives nil after its removal.
func openSegment(path string, size int64, newest bool) (*segment, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	var s *segment
	var torn bool
	b, err := os.ReadFile(path)
	if err == nil {
		if s, torn, err = scanSegment(b, path); err == nil {
			s.f, s.size = f, size
		}
	}
	switch {
	case err == errNoHeader && newest:
		f.Close()
		return nil, os.Remove(path)
	case err == nil && torn && !newest:
		err = errCorrupt("segment %s is cut off, and is not the newest", path)
	case err == nil && torn:
		err = s.cut()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

var errNoHeader = errors.New("the segment has no header")

// scanSegment finds the records in the bytes of a segment; torn says that something is behind them.
func scanSegment(b []byte, path string) (s *segment, torn bool, err error) {
	le := binary.LittleEndian
	switch {
	case len(b) < segHeader || allZero(b): // there is no entry before the header is durable
		return nil, false, errNoHeader
	case string(b[:8]) != segMagic || le.Uint32(b[20:]) != dataplane.CRC(b[:20]):
		return nil, false, errCorrupt("header of %s", path)
	case le.Uint32(b[8:]) != segVersion:
		return nil, false, dataplane.E("", dataplane.NotSupported, fmt.Errorf(
			"version %d of %s is newer than this program", le.Uint32(b[8:]), path))
	}
	s = &segment{path: path, first: le.Uint64(b[12:])}
	if filepath.Base(path) != segmentName(s.first) {
		return nil, false, errCorrupt("%s begins at %d", path, s.first)
	}
	at := segHeader
	for {
		n, index, _ := parseRecord(b[at:])
		if n == 0 || index != s.first+uint64(len(s.ends)) {
			break
		}
		at += n
		s.ends = append(s.ends, uint32(at))
	}
	// What lies behind may be what is left of the last batch, or zeros. A record of a later batch
	// proves that what is missing was durable once.
	missing := s.first + uint64(len(s.ends))
	for from := at; from < len(b); from++ {
		if b[from] == 0 && allZero(b[from:min(from+4096, len(b))]) {
			from = min(from+4096, len(b)) - 1
			continue
		}
		torn = true
		if !mayFollow(b[from:], missing, uint64(len(b))) {
			continue
		}
		if n, index, _ := parseRecord(b[from:]); n > 0 {
			return nil, false, errCorrupt("entry %d in %s is damaged, but %d behind it is not",
				missing, path, index)
		}
	}
	return s, torn, nil
}

// mayFollow says whether b, by its fields, may begin with a record of a batch behind the missing
// entry, which is at most so many entries ahead. Hardly anything else does: to compute a checksum
// from every byte of a large batch on would take hours.
func mayFollow(b []byte, missing, most uint64) bool {
	if len(b) < recHeader {
		return false
	}
	le := binary.LittleEndian
	index, batch := le.Uint64(b[8:]), le.Uint64(b[16:])
	return missing < batch && batch <= index && index-missing <= most
}

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// parseRecord checks the record at the start of b. n is its length, 0 if it isn't intact.
func parseRecord(b []byte) (n int, index, batch uint64) {
	if len(b) < recHeader {
		return 0, 0, 0
	}
	le := binary.LittleEndian
	data, ext := le.Uint32(b[4:]), le.Uint16(b[42:])
	n = recHeader + int(data) + int(ext)
	if data > maxRecordData || n > len(b) || b[41] != 0 ||
		le.Uint32(b) != dataplane.CRC(b[4:n]) {
		return 0, 0, 0
	}
	return n, le.Uint64(b[8:]), le.Uint64(b[16:])
}

// appendRecord encodes one entry.
func appendRecord(b []byte, l *raft.Log, batch uint64) []byte {
	le := binary.LittleEndian
	at := len(b)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(len(l.Data)))
	b = le.AppendUint64(b, l.Index)
	b = le.AppendUint64(b, batch)
	b = le.AppendUint64(b, l.Term)
	ns := int64(0)
	if !l.AppendedAt.IsZero() {
		ns = l.AppendedAt.UnixNano()
	}
	b = le.AppendUint64(b, uint64(ns))
	b = append(b, byte(l.Type), 0)
	b = le.AppendUint16(b, uint16(len(l.Extensions)))
	b = append(append(b, l.Data...), l.Extensions...)
	le.PutUint32(b[at:], dataplane.CRC(b[at+4:]))
	return b
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d.log", first) }

// cut makes everything behind the last record zeros, durably.
func (s *segment) cut() error {
	if err := s.f.Truncate(int64(s.end())); err != nil {
		return err
	}
	if err := allocate(s.f, int64(s.end()), s.size); err != nil {
		return err
	}
	return s.f.Sync()
}

// allocate gives a segment its space, zeros behind used bytes.
func allocate(f *os.File, used, size int64) error {
	if used >= size {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		err = f.Truncate(size)
	}
	return err
}

// IsMonotonic implements raft.MonotonicLogStore: entries are appended without gaps.
func (l *raftLog) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (l *raftLog) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.segs) == 0 || len(l.segs[0].ends) == 0 {
		return 0, nil
	}
	return l.segs[0].first, nil
}

// LastIndex implements raft.LogStore.
func (l *raftLog) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.lastIndex(), nil
}

func (l *raftLog) lastIndex() uint64 {
	if len(l.segs) == 0 {
		return 0
	}
	if s := l.segs[len(l.segs)-1]; len(s.ends) > 0 || len(l.segs) > 1 {
		return s.last()
	}
	return 0
}

// GetLog implements raft.LogStore. An entry that is there and can't be read ends the server: raft
// would go on without sending it to those who need it, and it is to be found damaged at once, not
// some day.
func (l *raftLog) GetLog(index uint64, out *raft.Log) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	i, found := slices.BinarySearchFunc(l.segs, index, func(s *segment, index uint64) int {
		switch {
		case s.first > index:
			return 1
		case len(s.ends) == 0 || s.last() < index:
			return -1
		}
		return 0
	})
	if !found {
		return raft.ErrLogNotFound
	}
	s := l.segs[i]
	k := int(index - s.first)
	b := make([]byte, s.ends[k]-s.start(k))
	if _, err := s.f.ReadAt(b, int64(s.start(k))); err != nil {
		err = dataplane.E(fmt.Sprintf("read log entry %d in %s", index, s.path),
			dataplane.IOError, err)
		l.onFail(err)
		return err
	}
	n, got, _ := parseRecord(b)
	if n != len(b) || got != index {
		err := errCorrupt("log entry %d in %s", index, s.path)
		// No refusal: it is to be started again, and then finds that it must begin anew.
		l.onFail(dataplane.E("go on with a damaged log", dataplane.IOError, err))
		return err
	}
	le := binary.LittleEndian
	data := recHeader + int(le.Uint32(b[4:]))
	*out = raft.Log{Index: index, Term: le.Uint64(b[24:]), Type: raft.LogType(b[40])}
	if ns := int64(le.Uint64(b[32:])); ns != 0 {
		out.AppendedAt = time.Unix(0, ns)
	}
	if data > recHeader {
		out.Data = b[recHeader:data:data]
	}
	if n > data {
		out.Extensions = b[data:]
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (l *raftLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs implements raft.LogStore: it returns when the entries are durable.
func (l *raftLog) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	if err := l.store(logs); err != nil {
		return l.fail(fmt.Sprintf("write log entry %d to %s", logs[0].Index, l.dir), err)
	}
	return nil
}

// fail notes that the log can't be trusted to be written any more. mu is held.
func (l *raftLog) fail(op string, err error) error {
	l.failed = dataplane.E(op, dataplane.IOError, err)
	l.onFail(l.failed)
	return l.failed
}

func (l *raftLog) store(logs []*raft.Log) error {
	first := logs[0].Index
	if last := l.lastIndex(); last != 0 && first != last+1 {
		if first <= last {
			return fmt.Errorf("entry %d, but the log ends at %d", first, last)
		}
		// A snapshot was installed that covers all there is.
		if err := l.removeAll(); err != nil {
			return err
		}
	}
	var ends []uint32 // of the records in the batch
	b := l.buf[:0]
	for i, e := range logs {
		if e.Index != first+uint64(i) || len(e.Data) > maxRecordData ||
			len(e.Extensions) > 1<<16-1 {
			return fmt.Errorf("entry %d of %d+%d bytes can't be stored", e.Index, len(e.Data),
				len(e.Extensions))
		}
		b = appendRecord(b, e, first)
		ends = append(ends, uint32(len(b)))
	}
	if l.buf = b; cap(b) > 4<<20 {
		l.buf = nil
	}
	s, err := l.segmentFor(first, len(b))
	if err != nil {
		return err
	}
	end := s.end()
	if _, err := s.f.WriteAt(b, int64(end)); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(s.f.Fd())); err != nil {
		return err
	}
	for _, e := range ends {
		s.ends = append(s.ends, end+e)
	}
	l.mark.set(l.lastIndex())
	return nil
}

// segmentFor returns the segment to append n bytes to.
func (l *raftLog) segmentFor(first uint64, n int) (*segment, error) {
	if k := len(l.segs); k > 0 {
		s := l.segs[k-1]
		switch {
		case len(s.ends) > 0 && int64(s.end())+int64(n) <= l.size:
			return s, nil
		case len(s.ends) == 0: // left by a crash, or of entries that were removed
			if err := l.drop(k-1, k); err != nil {
				return nil, err
			}
		}
	}
	path := filepath.Join(l.dir, segmentName(first))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	l.segs = append(l.segs, &segment{f: f, path: path, size: l.size, first: first})
	if err := allocate(f, 0, l.size); err != nil {
		return nil, err
	}
	var h [segHeader]byte
	copy(h[:], segMagic)
	le := binary.LittleEndian
	le.PutUint32(h[8:], segVersion)
	le.PutUint64(h[12:], first)
	le.PutUint32(h[20:], dataplane.CRC(h[:20]))
	if _, err := f.WriteAt(h[:], 0); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	return l.segs[len(l.segs)-1], syncDir(l.dir)
}

// DeleteRange implements raft.LogStore: entries at the beginning (whole segments of them, the rest
// stays) or at the end.
func (l *raftLog) DeleteRange(from, to uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	last := l.lastIndex()
	if last == 0 || from > to {
		return nil
	}
	var err error
	switch first := l.segs[0].first; {
	case to >= last && from <= first:
		err = l.removeAll()
	case to >= last:
		err = l.removeEnd(from)
	case from <= first:
		n := 0
		for n < len(l.segs)-1 && l.segs[n].last() <= to {
			n++
		}
		err = l.drop(0, n)
	default:
		err = errors.New("that is in the middle of the log")
	}
	if err != nil {
		return l.fail(fmt.Sprintf("remove log entries %d-%d in %s", from, to, l.dir), err)
	}
	return nil
}

// drop removes segments [from, to), in that order.
func (l *raftLog) drop(from, to int) error {
	for _, s := range l.segs[from:to] {
		if err := os.Remove(s.path); err != nil {
			return err
		}
		s.f.Close()
	}
	if from == to {
		return nil
	}
	l.segs = slices.Delete(l.segs, from, to)
	return syncDir(l.dir)
}

func (l *raftLog) removeAll() error {
	if err := l.mark.lower(0); err != nil {
		return err
	}
	return l.drop(0, len(l.segs))
}

// removeEnd removes the entries from an index on, which isn't the first. A crash on the way leaves
// fewer or more of them; raft removes them again.
func (l *raftLog) removeEnd(from uint64) error {
	if err := l.mark.lower(from - 1); err != nil {
		return err
	}
	for k := len(l.segs) - 1; l.segs[k].first >= from; k-- {
		if err := l.drop(k, k+1); err != nil {
			return err
		}
	}
	s := l.segs[len(l.segs)-1]
	if len(s.ends) == 0 || s.last() < from {
		return nil
	}
	s.ends = s.ends[:from-s.first]
	return s.cut()
}

func (l *raftLog) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	for _, s := range l.segs {
		if cerr := s.f.Close(); err == nil {
			err = cerr
		}
	}
	l.segs = nil
	if l.mark != nil {
		if cerr := l.mark.close(); err == nil {
			err = cerr
		}
		l.mark = nil
	}
	if l.failed == nil {
		l.failed = dataplane.E("use the metadata log", dataplane.Closed, nil)
	}
	return err
}
