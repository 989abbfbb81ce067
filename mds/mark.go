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
//
// It is raised after the log's flush, and lowered (and flushed) before entries are removed on
// purpose, so it is never above what the log must have; after a power failure it may be below.
const (
	markFile    = "watermark"
	markMagic   = "PSMDMARK"
	markSize    = 24
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
	switch {
	case allZero(m.b):
		if last > 0 {
			return errCorrupt("the watermark is lost")
		}
	case string(m.b[:8]) != markMagic || le.Uint32(m.b[20:]) != dataplane.CRC(m.b[:20]):
		return errCorrupt("the watermark is damaged")
	case le.Uint32(m.b[16:]) != markVersion:
		return dataplane.E("", dataplane.NotSupported,
			fmt.Errorf("version %d of the watermark", le.Uint32(m.b[16:])))
	case m.index() > last:
		return errCorrupt("it ends at entry %d, but had entry %d: it is damaged or was rolled back; "+
			"this server's directory must be made anew from the others", last, m.index())
	}
	m.set(last)
	return nil
}

func (m *mark) index() uint64 { return binary.LittleEndian.Uint64(m.b[8:]) }

func (m *mark) set(index uint64) {
	le := binary.LittleEndian
	copy(m.b, markMagic)
	le.PutUint64(m.b[8:], index)
	le.PutUint32(m.b[16:], markVersion)
	le.PutUint32(m.b[20:], dataplane.CRC(m.b[:20]))
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
