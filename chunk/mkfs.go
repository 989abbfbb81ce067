package chunk

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// FormatOptions say what chunk server to make. Cluster and ClusterName are needed.
type FormatOptions struct {
	Cluster     dataplane.ClusterID
	ClusterName string
	Addr        string // "ip" or "ip:port" to listen on; kept for Run
	// LogPath is where the log goes: a file that isn't there yet, or a block device. Empty: the
	// file "cache" in the directory.
	LogPath string
	// LogSize is the size of the log file in bytes; 0: 1 GiB, or less on a small disk.
	LogSize int64
	// Capacity is how many bytes of chunks to keep, rounded down to whole chunks; 0: what is free
	// on the file system, less a reserve. At most MaxCapacity.
	Capacity uint64
	Tier     uint8
	Location string
	Log      *slog.Logger // nil: slog.Default()
	// Claimed, if not nil, is called when the directory and the log's place are taken, so that no
	// other Format gets them, and before what takes long.
	Claimed func()
	// Progress, if not nil, is told how many bytes of the log have been written.
	Progress func(done, total int64)
	// Stop, if not nil, is asked now and then, while the log is written, why Format is to give up.
	Stop func() error
}

// MaxCapacity is how many bytes of chunks one server keeps at most: 16 TiB.
const MaxCapacity = ssdcache.MaxSlots * dataplane.ChunkSize

// Sizes that Format chooses and insists on, in bytes.
const (
	defaultLogSize = 1 << 30
	minLogSize     = (ssdcache.MinSize + 1<<20 - 1) &^ (1<<20 - 1)
	minReserve     = 256 << 20 // of the file system, kept free
	metaPerSlot    = crcBytesSlot + entrySize
)

// Format makes a chunk server in dir, which is made if it doesn't exist. The identity is written
// last, so that a directory with one is complete. It refuses a directory that holds anything of a
// chunk server already. If it fails, nothing of it is left.
func Format(dir string, o FormatOptions) (err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := checkFree(dir, &o); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of the chunk server: %w", err)
	}
	id, sb, err := plan(dir, &o)
	if err != nil {
		return err
	}
	logPath := id.logPath(dir)
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				os.Remove(path)
			}
		}
	}()
	store := filepath.Join(dir, storeFile)
	if err = makeStore(store, sb); !errors.Is(err, os.ErrExist) {
		made = append(made, store)
	}
	if err != nil {
		return fmt.Errorf("make the store %s: %w", store, err)
	}
	place, err := claimLog(logPath, o.Log)
	if err != nil {
		return fmt.Errorf("make the log %s: %w", logPath, err)
	}
	defer place.close()
	if !place.device {
		made = append(made, logPath)
	}
	if o.Claimed != nil {
		o.Claimed()
	}
	if err = makeLog(place, o.LogSize, ssdcache.FormatOptions{Owner: ownerOf(sb.log),
		Progress: o.Progress, Stop: o.Stop}, o.Log); err != nil {
		return fmt.Errorf("make the log %s: %w", logPath, err)
	}
	if err = syncDir(filepath.Dir(logPath)); err != nil {
		return err
	}
	made = append(made, filepath.Join(dir, identityFile))
	return id.write(dir)
}

// checkFree refuses a directory in use.
func checkFree(dir string, o *FormatOptions) error {
	what := "make a chunk server in " + dir
	id, err := ReadIdentity(dir)
	switch {
	case err == nil && id.Cluster != o.Cluster.String():
		return dataplane.E(what, dataplane.WrongCluster, fmt.Errorf(
			"it holds chunk server %d of another cluster, %q (id %s)", id.CS, id.ClusterName, id.Cluster))
	case err == nil:
		return dataplane.E(what, dataplane.Exists, fmt.Errorf(
			"it holds chunk server %d of cluster %q already", id.CS, id.ClusterName))
	case !errors.Is(err, ErrNoIdentity):
		return dataplane.E(what, dataplane.Exists, err)
	}
	for _, name := range []string{storeFile, cacheFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return dataplane.E(what, dataplane.Exists, fmt.Errorf("there is a file %q without an "+
				"identity: what is left of a chunk server; move it away", name))
		}
	}
	return nil
}

// plan chooses sizes and identities.
func plan(dir string, o *FormatOptions) (*Identity, *superblock, error) {
	what := "make a chunk server in " + dir
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, nil, fmt.Errorf("%s: ask for its free space: %w", what, err)
	}
	free := int64(fs.Bavail) * fs.Bsize
	free -= max(minReserve, free/20)
	onDisk := o.LogPath == ""
	if o.LogSize == 0 {
		o.LogSize = defaultLogSize
		if onDisk {
			o.LogSize = max(min(o.LogSize, free/16), minLogSize)
		}
	}
	if o.LogSize < minLogSize {
		return nil, nil, dataplane.E(what, dataplane.Invalid, fmt.Errorf(
			"a journal of %d KiB is too small, it takes at least %d MiB", o.LogSize>>10, minLogSize>>20))
	}
	o.LogSize &^= 1<<20 - 1
	if onDisk && o.LogSize > free {
		return nil, nil, dataplane.E(what, dataplane.NoSpace, fmt.Errorf("a journal of %d MiB doesn't "+
			"fit on its disk: %d MiB are free", o.LogSize>>20, max(free, 0)>>20))
	} else if onDisk {
		free -= o.LogSize
	}
	if o.Capacity == 0 {
		if free > 0 {
			o.Capacity = uint64(free) / (dataplane.ChunkSize + metaPerSlot) * dataplane.ChunkSize
		}
	} else if o.Capacity > fs.Blocks*uint64(fs.Bsize) {
		return nil, nil, dataplane.E(what, dataplane.NoSpace, fmt.Errorf(
			"%d bytes asked for, the file system has %d in all", o.Capacity, fs.Blocks*uint64(fs.Bsize)))
	}
	slots := o.Capacity / dataplane.ChunkSize
	if slots == 0 {
		return nil, nil, dataplane.E(what, dataplane.NoSpace, fmt.Errorf(
			"not even one chunk of 64 MiB fits (%d MiB free, of which %d are kept free)",
			int64(fs.Bavail)*fs.Bsize>>20, minReserve>>20))
	}
	slots = min(slots, ssdcache.MaxSlots)
	sb := newSuperblock(uint32(slots))
	rand.Read(sb.disk[:]) // never fails
	rand.Read(sb.log[:])
	sb.cluster = o.Cluster
	id := &Identity{Version: identityVersion, ClusterName: o.ClusterName,
		Cluster: o.Cluster.String(), Disk: sb.disk.String(), Log: sb.log.String(),
		Capacity: slots * dataplane.ChunkSize, LogPath: o.LogPath, Tier: o.Tier,
		Location: o.Location, Addr: o.Addr, Created: now()}
	if onDisk {
		id.LogPath = cacheFile
	} else if abs, err := filepath.Abs(o.LogPath); err == nil {
		id.LogPath = abs
	}
	return id, &sb, nil
}

// makeStore writes the superblock of a sparse file.
func makeStore(path string, sb *superblock) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	b := make([]byte, superSize)
	sb.put(b)
	if err = f.Truncate(sb.size()); err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// makeLog makes an empty log of the given size, or of the whole device.
func makeLog(place *logPlace, size int64, o ssdcache.FormatOptions, log *slog.Logger) error {
	if place.device {
		size = 0
	}
	loop, err := uring.NewLoop(uring.LoopOptions{PoolSize: 4 << 20, NoRegister: true, Log: log})
	if err != nil {
		return err
	}
	var disk uring.Disk
	var result error
	end := func(err error) {
		if disk != nil {
			if e := disk.Close(); err == nil {
				err = e
			}
		}
		result = err
		loop.Stop()
	}
	loop.Post(func() {
		var err error
		disk, err = loop.OpenDisk(place.path, uring.DiskOptions{Size: size, Lock: true})
		if err != nil {
			end(err)
			return
		}
		o.Disk, o.Env, o.Pool = disk, loop, loop.Pool()
		ssdcache.Format(o, end)
	})
	if err := loop.Run(); err != nil {
		return err
	}
	if err := loop.Close(); err != nil {
		return err
	}
	return result
}
