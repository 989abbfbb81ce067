package perf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Found is one place of a pattern in a file.
type Found struct {
	Path   string
	Offset int64
}

// flipWindow is how much is read at once.
const flipWindow = 4 << 20

// FindPattern returns every place of pattern in the data of the regular files below dir whose
// path matches glob ("" for all; matched against the file's name). Holes are skipped, so a sparse
// store of terabytes takes as long as what is in it. It stops after most places; 0: at the end.
func FindPattern(dir, glob string, pattern []byte, most int) ([]Found, error) {
	if len(pattern) < 8 || len(pattern) > flipWindow/2 {
		return nil, fmt.Errorf("pattern of %d bytes: must be 8 bytes to 2 MiB", len(pattern))
	}
	var all []Found
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if most > 0 && len(all) >= most {
			return fs.SkipAll
		}
		if glob != "" {
			if ok, err := filepath.Match(glob, d.Name()); err != nil || !ok {
				return err
			}
		}
		offsets, err := findInFile(path, pattern, most-len(all))
		for _, o := range offsets {
			all = append(all, Found{path, o})
		}
		return err
	})
	return all, err
}

// findInFile stops after most places if that is above 0.
func findInFile(path string, pattern []byte, most int) ([]int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []int64
	buf := make([]byte, flipWindow)
	for at := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return found, nil // only holes from here on
		}
		if err != nil {
			return nil, fmt.Errorf("look for data in %s: %w", path, err)
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("look for holes in %s: %w", path, err)
		}
		for at = data; at < hole; {
			n, err := f.ReadAt(buf[:min(flipWindow, hole-at)], at)
			if err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			for i := 0; ; {
				k := bytes.Index(buf[i:n], pattern)
				if k < 0 {
					break
				}
				found = append(found, at+int64(i+k))
				if len(found) == most {
					return found, nil
				}
				i += k + 1
			}
			if at+int64(n) >= hole || n < len(pattern) {
				break
			}
			at += int64(n - len(pattern) + 1) // a pattern may lie across two windows
		}
		at = hole
	}
}

// Sparse returns those of the places that lie at least apart bytes behind the one before, in their
// file.
func Sparse(places []Found, apart int64) []Found {
	var out []Found
	for _, p := range places {
		if n := len(out); n == 0 || out[n-1].Path != p.Path || p.Offset-out[n-1].Offset >= apart {
			out = append(out, p)
		}
	}
	return out
}

// Flip inverts the lowest bit of the byte at each place, and makes that durable. The process that
// owns the files should be stopped: it would hardly expect it.
func Flip(places []Found) error {
	for _, p := range places {
		f, err := os.OpenFile(p.Path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		var b [1]byte
		_, err = f.ReadAt(b[:], p.Offset)
		if err == nil {
			b[0] ^= 1
			_, err = f.WriteAt(b[:], p.Offset)
		}
		if err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("flip a bit of %s at %d: %w", p.Path, p.Offset, err)
		}
	}
	return nil
}
