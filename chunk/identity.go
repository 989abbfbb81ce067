package chunk

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// The files of a chunk server's directory.
const (
	identityFile = "identity"
	storeFile    = "store"
	cacheFile    = "cache"
)

// Identity says whose a chunk server's directory is. In the file it is one JSON document, then a
// line "crc32c XXXXXXXX" over all bytes before that line; the file is replaced as a whole.
type Identity struct {
	Version     int    // 1
	ClusterName string // for people
	Cluster     string // 32 hex digits
	Disk        string // 32 hex digits, made with the directory
	Log         string // 32 hex digits: the log that belongs to the store
	CS          dataplane.CSID
	Boot        uint64 // how often a server was started on this directory
	Capacity    uint64 // bytes for chunks
	Stamp       uint64 // number of the store's checkpoint at the last start or orderly stop: stamp.go
	LogPath     string // of the log: absolute, or relative to the directory
	Tier        uint8
	Location    string // "room/row/rack" or empty
	Addr        string // "ip" or "ip:port" asked for by make-cs; empty: not said
	Created     string // RFC 3339
	// RolledBack is what the metadata servers said when they refused the directory as an older copy
	// of itself; it isn't served any more. Without it, it would be once it was started as often as
	// the newer one. Empty in all others, so that older programs read those.
	RolledBack string `json:",omitempty"`
	// Starts are random numbers of starts, as RegisterCSReq has them: the last one's is the last.
	Starts []uint64 `json:",omitempty"`
	// Confirmed is Boot of the last start that the metadata servers confirmed before this was written.
	Confirmed uint64 `json:",omitempty"`
}

const identityVersion = 1

// ErrNoIdentity says that a directory isn't a chunk server's.
var ErrNoIdentity = errors.New("no chunk server lives here (no identity file); " +
	"make one with make-cs")

// ReadIdentity reads the identity of the chunk server in dir. The error wraps ErrNoIdentity if
// there is none.
func ReadIdentity(dir string) (*Identity, error) {
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoIdentity)
	}
	if err != nil {
		return nil, err
	}
	id, err := decodeIdentity(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; put it back from a copy of this directory", path, err)
	}
	return id, nil
}

func decodeIdentity(b []byte) (*Identity, error) {
	const trailer = len("crc32c 00000000\n")
	if len(b) < trailer || len(b) > 1<<16 {
		return nil, errors.New("identity file has a wrong size")
	}
	body, tail := b[:len(b)-trailer], b[len(b)-trailer:]
	if string(tail) != identityTrailer(body) {
		return nil, errors.New("identity file is damaged (checksum mismatch)")
	}
	id := &Identity{}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(id); err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	if id.Version != identityVersion {
		return nil, fmt.Errorf("identity file has version %d, this program knows %d",
			id.Version, identityVersion)
	}
	for _, s := range []string{id.Cluster, id.Disk, id.Log} {
		if u, err := hex.DecodeString(s); err != nil || len(u) != 16 {
			return nil, fmt.Errorf("identity file: %q isn't an id of 32 hex digits", s)
		}
	}
	if id.Capacity == 0 || id.Capacity/dataplane.ChunkSize > maxSlots {
		return nil, fmt.Errorf("identity file: capacity of %d bytes", id.Capacity)
	}
	if len(id.Starts) > control.MaxStarts || slices.Contains(id.Starts, 0) {
		return nil, fmt.Errorf("identity file: numbers of %d starts", len(id.Starts))
	}
	return id, nil
}

func identityTrailer(body []byte) string {
	return fmt.Sprintf("crc32c %08x\n", dataplane.CRC(body))
}

func (id *Identity) encode() []byte {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("chunk: identity: %v", err))
	}
	b = append(b, '\n')
	return append(b, identityTrailer(b)...)
}

// write replaces the identity file of dir, durably: a new file is written, synced and renamed over
// the old one, then the directory is synced.
func (id *Identity) write(dir string) error {
	return writeFileDurably(filepath.Join(dir, identityFile), id.encode())
}

func (id *Identity) cluster() (c dataplane.ClusterID) {
	b, _ := hex.DecodeString(id.Cluster)
	copy(c[:], b)
	return c
}

func (id *Identity) diskUUID() (u uuid) {
	b, _ := hex.DecodeString(id.Disk)
	copy(u[:], b)
	return u
}

func (id *Identity) logUUID() (u uuid) {
	b, _ := hex.DecodeString(id.Log)
	copy(u[:], b)
	return u
}

func (id *Identity) logPath(dir string) string {
	if filepath.IsAbs(id.LogPath) {
		return id.LogPath
	}
	return filepath.Join(dir, id.LogPath)
}

// now is for people only: when a directory was made.
func now() string { return time.Now().UTC().Format(time.RFC3339) }

func writeFileDurably(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
