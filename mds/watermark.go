package mds

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"golang.org/x/sys/unix"

	"pstorage/dataplane"
)

// The log takes damage in its last segment for a write that was torn by a crash, and cuts off what
// is behind, acknowledged or not. So the highest index that was made durable is kept beside it, in
// a mapped file that the kernel writes back by itself:
//
//	offset size field
//	     0    8 "PSMDMARK"
//	     8    8 index: every log entry up to here was durable once
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

// guardedLog is a log whose losses are noticed. Like the log it has one writer.
type guardedLog struct {
	*wal.WAL
	mark []byte // mapped
}

// guard opens the watermark under dir and compares it with the log.
func guard(w *wal.WAL, dir string) (*guardedLog, error) {
	op := "check the metadata log in " + dir
	f, err := os.OpenFile(filepath.Join(dir, markFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, dataplane.E(op, dataplane.IOError, err)
	}
	defer f.Close()
	if err := f.Truncate(markSize); err != nil {
		return nil, dataplane.E(op, dataplane.IOError, err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, markSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, dataplane.E(op, dataplane.IOError, err)
	}
	g := &guardedLog{w, b}
	if err := g.check(); err != nil {
		unix.Munmap(b)
		return nil, dataplane.E(op, dataplane.BadCRC, err)
	}
	if err = g.sync(); err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		unix.Munmap(b)
		return nil, dataplane.E(op, dataplane.IOError, err)
	}
	return g, nil
}

// check compares the watermark with the log, and begins one when there is none.
func (g *guardedLog) check() error {
	last, err := g.WAL.LastIndex()
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	switch {
	case string(g.mark) == string(make([]byte, markSize)):
		if last > 0 {
			return errors.New("the watermark is lost")
		}
	case string(g.mark[:8]) != markMagic || le.Uint32(g.mark[20:]) != dataplane.CRC(g.mark[:20]):
		return errors.New("the watermark is damaged")
	case le.Uint32(g.mark[16:]) != markVersion:
		return fmt.Errorf("version %d of the watermark", le.Uint32(g.mark[16:]))
	case g.index() > last:
		return fmt.Errorf("it ends at entry %d, but had entry %d: it is damaged or was rolled back; "+
			"this server's directory must be made anew from the others", last, g.index())
	}
	g.set(last)
	return nil
}

func (g *guardedLog) index() uint64 { return binary.LittleEndian.Uint64(g.mark[8:]) }

func (g *guardedLog) set(index uint64) {
	le := binary.LittleEndian
	copy(g.mark, markMagic)
	le.PutUint64(g.mark[8:], index)
	le.PutUint32(g.mark[16:], markVersion)
	le.PutUint32(g.mark[20:], dataplane.CRC(g.mark[:20]))
}

// sync makes the watermark durable.
func (g *guardedLog) sync() error { return unix.Msync(g.mark, unix.MS_SYNC) }

// StoreLog implements raft.LogStore.
func (g *guardedLog) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (g *guardedLog) StoreLogs(logs []*raft.Log) error {
	if err := g.WAL.StoreLogs(logs); err != nil {
		return err
	}
	if len(logs) > 0 {
		g.set(logs[len(logs)-1].Index)
	}
	return nil
}

// DeleteRange implements raft.LogStore.
func (g *guardedLog) DeleteRange(from, to uint64) error {
	if last, err := g.WAL.LastIndex(); err != nil || to >= last {
		g.set(min(g.index(), max(from, 1)-1))
		if err := g.sync(); err != nil {
			return err
		}
	}
	return g.WAL.DeleteRange(from, to)
}

func (g *guardedLog) close() error {
	err := g.WAL.Close()
	if merr := unix.Munmap(g.mark); err == nil {
		err = merr
	}
	return err
}
