package mds

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
)

// The stable store keeps raft's few values (term, vote) in one small file, replaced as a whole:
//
//	offset size field
//	     0    8 "PSMDSTAB"
//	     8    4 version (1)
//	    12    4 number of values
//	    16      values in the order of keys: key, value, each with a u32 length in front
//	   end    4 CRC32C of everything before
const (
	stableFile    = "stable"
	stableMagic   = "PSMDSTAB"
	stableVersion = 1
	maxStable     = 1 << 20 // bytes
)

// stableStore is raft's store of values that must survive a crash.
type stableStore struct {
	dir string

	mu     sync.Mutex // guards what follows
	values map[string][]byte
}

var _ raft.StableStore = (*stableStore)(nil)

func openStable(dir string) (*stableStore, error) {
	s := &stableStore{dir: dir, values: make(map[string][]byte)}
	path := filepath.Join(dir, stableFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, dataplane.E("read "+path, dataplane.IOError, err)
	}
	if err := s.decode(b); err != nil {
		return nil, dataplane.E("read "+path, dataplane.KindOf(err), err)
	}
	return s, nil
}

func (s *stableStore) decode(b []byte) error {
	if len(b) < 20 || len(b) > maxStable || string(b[:8]) != stableMagic ||
		binary.LittleEndian.Uint32(b[len(b)-4:]) != dataplane.CRC(b[:len(b)-4]) {
		return errCorrupt("it is damaged; this server could vote twice")
	}
	d := decoder{b: b[8 : len(b)-4]}
	if v := d.u32(); v != stableVersion {
		return dataplane.E("", dataplane.NotSupported, errors.New("a newer version"))
	}
	for range d.count(8) {
		key := d.str()
		s.values[key] = d.bytes()
	}
	if !d.ok() {
		return errCorrupt("it makes no sense")
	}
	return nil
}

// Set implements raft.StableStore.
func (s *stableStore) Set(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	values := maps.Clone(s.values)
	values[string(key)] = slices.Clone(value)
	e := encoder{b: []byte(stableMagic)}
	e.u32(stableVersion)
	e.u32(uint32(len(values)))
	for _, k := range slices.Sorted(maps.Keys(values)) {
		e.str(k)
		e.bytes(values[k])
	}
	e.u32(dataplane.CRC(e.b))
	if err := replaceFile(filepath.Join(s.dir, stableFile), e.b); err != nil {
		return dataplane.E("write "+filepath.Join(s.dir, stableFile), dataplane.IOError, err)
	}
	s.values = values
	return nil
}

// replaceFile makes b the contents of a file, durably, all or nothing.
func replaceFile(path string, b []byte) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Get implements raft.StableStore; a value that was never set is empty.
func (s *stableStore) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[string(key)], nil
}

// SetUint64 implements raft.StableStore.
func (s *stableStore) SetUint64(key []byte, v uint64) error {
	return s.Set(key, binary.LittleEndian.AppendUint64(nil, v))
}

// GetUint64 implements raft.StableStore.
func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	b, _ := s.Get(key)
	switch len(b) {
	case 0:
		return 0, nil
	case 8:
		return binary.LittleEndian.Uint64(b), nil
	}
	return 0, errCorrupt("value of %s", key)
}
