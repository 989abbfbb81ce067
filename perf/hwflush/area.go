package hwflush

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

const (
	// minSlots and maxSlots bound the area: 1 MiB to 64 GiB.
	minSlots = 256
	maxSlots = 16 << 20

	fileName = "hwflush-check.data" // in a directory
	headSize = 1 << 20              // of the area, looked at before it is overwritten
)

// areaPath returns the file or device that path means: of a directory, our file in it.
func areaPath(path string) string {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return filepath.Join(path, fileName)
	}
	return path
}

// openArea opens the file or device at path for writing and returns how many slots it has. A file
// is made and written in full if it isn't there, so that a record changes no file-system metadata.
// What holds anything but zeros or records is refused.
func openArea(path string, size int64, flags int) (f *os.File, slots uint64, err error) {
	info, err := os.Stat(path)
	device := err == nil && info.Mode()&os.ModeDevice != 0
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := makeArea(path, size); err != nil {
			return nil, 0, fmt.Errorf("make %s: %w", path, err)
		}
	case err != nil:
		return nil, 0, err
	case device:
		flags |= syscall.O_EXCL // fails while the device is mounted or part of a volume
	case !info.Mode().IsRegular():
		return nil, 0, fmt.Errorf("%s is neither a directory, a file nor a block device", path)
	}
	if f, err = os.OpenFile(path, os.O_RDWR|flags, 0); err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err = checkHead(f); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, err
	}
	slots = uint64(min(have, size) / recordSize)
	if slots < minSlots {
		return nil, 0, fmt.Errorf("%s: %d bytes are too few, at least %d are needed", path,
			min(have, size), minSlots*recordSize)
	}
	return f, min(slots, maxSlots), nil
}

// makeArea makes a file of zeros, durable with its name.
func makeArea(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < size && err == nil; at += int64(len(zeros)) {
		_, err = f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// checkHead refuses an area that holds other data.
func checkHead(f *os.File) error {
	head := make([]byte, headSize)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	head = head[:n]
	if len(bytes.Trim(head, "\x00")) == 0 {
		return nil
	}
	for ; len(head) >= recordSize; head = head[recordSize:] {
		if _, ok := parseRecord(head[:recordSize]); ok {
			return nil
		}
	}
	return errors.New("it holds other data, which would be overwritten; take another path")
}

// Verdict is what a comparison of the disk with the server's knowledge gave.
type Verdict struct {
	Last     uint64 // the highest number that the server knows to be acknowledged
	Newest   uint64 // the highest number of that run on the disk; 0: none
	Compared uint64 // records that must be there
	Lost     uint64 // of these, how many aren't there
	First    uint64 // the lowest number lost
	Damaged  uint64 // of the lost ones, in whose place is no intact record at all
}

// compare reads the area and looks for every record that must be there.
func compare(area io.ReaderAt, session Session, last, slots, window uint64) (Verdict, error) {
	v := Verdict{Last: last}
	lowest := uint64(1)
	if last+window > slots {
		lowest = last + window - slots + 1
	}
	buf := make([]byte, recordSize)
	for slot := range slots {
		n, err := area.ReadAt(buf, int64(slot*recordSize))
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EIO) {
			return v, err
		}
		r, intact := parseRecord(buf[:n])
		ours := intact && r.session == session
		if ours {
			v.Newest = max(v.Newest, r.number)
		}
		// Of the numbers in question, at most one belongs to this slot.
		want := lowest + (slot+slots-lowest%slots)%slots
		if want > last {
			continue
		}
		v.Compared++
		if ours && r.number == want {
			continue
		}
		v.Lost++
		if !intact {
			v.Damaged++
		}
		if v.First == 0 || want < v.First {
			v.First = want
		}
	}
	return v, nil
}
