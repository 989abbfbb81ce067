package mds

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
)

// The watermark is the highest index that the log made durable. Without it a damaged last batch,
// acknowledged, would pass for one that a crash tore. It is a mapped file that the kernel writes
// back by itself:
//
//	offset size field
//	     0    8 "PSMDMARK"
//	     8    8 index
//	    16    4 version (1)
//	    20    4 CRC32C of bytes 0-19
//	    24   24 the same: what the first 24 bytes are about to be
//
// The second half is changed first. A process that is killed between two fields of the first one
// leaves the new index there and in the second half, which is whole.
//
// It is raised after the log's flush, and lowered (and flushed) before entries are removed on
// purpose, so it is never above what the log must have; after a power failure it may be below.
const (
	markFile    = "watermark"
	markMagic   = "PSMDMARK"
	markHalf    = 24
	markSize    = 2 * markHalf
	markVersion = 1
)

type mark struct{ b []byte } // mapped

// openMark opens the watermark of the log in dir, which ends at last, and compares them.
func openMark(dir string, last uint64) (*mark, error) {
	f, err := os.OpenFile(filepath.Join(dir, markFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(markSize); err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, markSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	m := &mark{b}
	if err = m.check(last); err == nil {
		if err = m.sync(); err == nil {
			err = syncDir(dir)
		}
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// check compares the watermark with the log's last index, and begins one when there is none.
func (m *mark) check(last uint64) error {
	le := binary.LittleEndian
	half := m.b[:markHalf]
	if m.torn() {
		half = m.b[markHalf:]
	}
	switch {
	case allZero(m.b):
		if last > 0 {
			return errCorrupt("the watermark is lost")
		}
	case !markWhole(half):
		return errCorrupt("the watermark is damaged")
	case le.Uint32(half[16:]) != markVersion:
		return dataplane.E("", dataplane.NotSupported,
			fmt.Errorf("version %d of the watermark", le.Uint32(half[16:])))
	case m.index() > last:
		return errCorrupt("it ends at entry %d, but had entry %d: it is damaged or was rolled back; "+
			"this server's directory must be made anew from the others", last, m.index())
	}
	m.set(last)
	return nil
}

func (m *mark) index() uint64 { return binary.LittleEndian.Uint64(m.b[8:]) }

// markWhole says whether a half is what was written.
func markWhole(b []byte) bool {
	return string(b[:8]) == markMagic &&
		binary.LittleEndian.Uint32(b[20:]) == dataplane.CRC(b[:20])
}

// torn says whether the first half was being changed.
func (m *mark) torn() bool {
	second := mark{m.b[markHalf:]}
	return !markWhole(m.b[:markHalf]) && markWhole(second.b) && second.index() == m.index()
}

func (m *mark) set(index uint64) {
	le := binary.LittleEndian
	for _, b := range [][]byte{m.b[markHalf:], m.b[:markHalf]} {
		copy(b, markMagic)
		le.PutUint64(b[8:], index)
		le.PutUint32(b[16:], markVersion)
		le.PutUint32(b[20:], dataplane.CRC(b[:20]))
	}
}

// lower makes the watermark at most index, durably.
func (m *mark) lower(index uint64) error {
	if m.index() <= index {
		return nil
	}
	m.set(index)
	return m.sync()
}

func (m *mark) sync() error { return unix.Msync(m.b, unix.MS_SYNC) }

func (m *mark) close() error { return unix.Munmap(m.b) }
