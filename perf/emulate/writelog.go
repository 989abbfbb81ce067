package emulate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// A record of writes is in the format of Linux's dm-log-writes. All integers are little endian:
//
//	sector 0: 8 magic 0x6a736677736872, 8 version (1), 8 number of entries, 4 bytes of a sector
//	then entries, each a sector and behind it the data:
//	          8 first sector written, 8 number of sectors, 8 flags, 8 (unused here)
//	flags     1 flush, 2 FUA, 4 discard (no data), 8 mark
//
// The number of entries is as of the last flush: what lies behind is found by the file's size.
const (
	recordMagic   = 0x6a736677736872
	recordVersion = 1
	recordFlush   = 1
	recordDiscard = 4
	recordKnown   = recordFlush | recordDiscard | 2
)

// Written is one entry of a record: bytes that were written or, without data, zeroed; or a flush.
type Written struct {
	Flush   bool
	Discard bool
	Offset  int64 // on the disk, bytes
	Length  int64
	At      int64 // where the entry begins in the record: it grew beyond At when this completed
	data    int64 // where its data are in the record
}

// WriteLog is a record of what was written to a disk.
type WriteLog struct {
	Entries []Written
	file    *os.File
}

// ReadWriteLog opens the record of a disk that isn't written to any more.
func ReadWriteLog(path string) (*WriteLog, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	l := &WriteLog{file: f}
	if err := l.read(); err != nil {
		f.Close()
		return nil, fmt.Errorf("record of writes %s: %w", path, err)
	}
	return l, nil
}

// Close closes the record's file.
func (l *WriteLog) Close() error { return l.file.Close() }

func (l *WriteLog) read() error {
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, 32)
	if _, err := l.file.ReadAt(head, 0); err != nil {
		return fmt.Errorf("its head: %w", err)
	}
	le := binary.LittleEndian
	sector := int64(le.Uint32(head[24:]))
	if le.Uint64(head) != recordMagic || le.Uint64(head[8:]) != recordVersion ||
		sector < 512 || sector > 4096 || sector&(sector-1) != 0 {
		return errors.New("not a record of writes")
	}
	claimed := le.Uint64(head[16:])
	for at := sector; at < info.Size(); {
		if _, err := l.file.ReadAt(head, at); err != nil {
			return fmt.Errorf("entry %d: %w", len(l.Entries), err)
		}
		first, n, flags := le.Uint64(head), le.Uint64(head[8:]), le.Uint64(head[16:])
		if flags&^recordKnown != 0 || n > 1<<40/512 || first > 1<<50/512 {
			return fmt.Errorf("entry %d at %d makes no sense: %x", len(l.Entries), at, head)
		}
		w := Written{Flush: flags&recordFlush != 0, Discard: flags&recordDiscard != 0,
			Offset: int64(first) * sector, Length: int64(n) * sector, At: at, data: at + sector}
		at += sector
		if !w.Discard {
			at += w.Length
		}
		if at > info.Size() {
			break // the daemon ended while it wrote this one
		}
		l.Entries = append(l.Entries, w)
	}
	if uint64(len(l.Entries)) < claimed {
		return fmt.Errorf("%d entries, and its head says %d", len(l.Entries), claimed)
	}
	return nil
}

// Apply does entry i on a copy of the disk: all of it, or only the sectors of 512 bytes, counted
// from the entry's first, for which keep says so.
func (l *WriteLog) Apply(to io.WriterAt, i int, keep func(sector int64) bool) error {
	w := &l.Entries[i]
	if w.Length == 0 {
		return nil
	}
	buf := make([]byte, w.Length)
	if !w.Discard {
		if _, err := l.file.ReadAt(buf, w.data); err != nil {
			return fmt.Errorf("data of entry %d: %w", i, err)
		}
	}
	if keep == nil {
		_, err := to.WriteAt(buf, w.Offset)
		return err
	}
	for s := int64(0); s < w.Length; s += 512 {
		if keep(s / 512) {
			if _, err := to.WriteAt(buf[s:s+512], w.Offset+s); err != nil {
				return err
			}
		}
	}
	return nil
}

// Flushes returns the indexes of the entries that are flushes.
func (l *WriteLog) Flushes() []int {
	var list []int
	for i := range l.Entries {
		if l.Entries[i].Flush {
			list = append(list, i)
		}
	}
	return list
}
