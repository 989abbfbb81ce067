package chunk

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// What a server checks before it serves, and what it says when it won't. The order matters: until
// identity, store and log are known to belong together nothing is written, so that whoever put the
// wrong one there can put the right one back.

// startError explains why files can't be used. Another start would end the same way, so its kind
// is one that isn't tried again by itself; err's own kind stays if it has one.
func startError(what, path string, err error) error {
	if k := dataplane.KindOf(err); err == nil || k != dataplane.Internal && k != dataplane.IOError {
		return err
	}
	hint := ""
	switch {
	case errors.Is(err, syscall.EROFS):
		hint = "the file system is mounted read-only: after an error of its disk that is how Linux " +
			"protects it. Look at the kernel's log (dmesg); mend it, or drop this chunk server"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		hint = "its file system is full: make room there, then start it again"
	case errors.Is(err, syscall.EIO), dataplane.KindOf(err) == dataplane.IOError:
		hint = "the disk can't be read or written. Look at the kernel's log (dmesg); replace the disk " +
			"and drop this chunk server: the other copies of its chunks are complete"
	case errors.Is(err, fs.ErrPermission):
		hint = "give this user the right to read and write it"
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return dataplane.E(what, dataplane.Invalid, fmt.Errorf("%s: %w; %s", path, err, hint))
}

// failedText is how a disk failed while it was served, and what to do: for the metadata servers,
// whose stat shows it.
func failedText(err error) string {
	hint := "look at its host's kernel log (dmesg). Mend the disk and start the chunk server again, " +
		"or replace it: pstorage rm-cs --force, then make-cs. Its chunks are copied to others"
	switch {
	case errors.Is(err, syscall.ENOSPC):
		hint = "make room on its file system, and it goes on by itself, or in 10 minutes if the room " +
			"is below the file system, as in a thin pool. Its chunks are copied to others"
	case errors.Is(err, syscall.EROFS):
		hint = "Linux makes a file system read-only after an error of its disk: " + hint
	}
	return err.Error() + "; " + hint
}

// missingIdentity explains a directory without the file: is it empty, or did it lose it?
func missingIdentity(dir string, err error) error {
	var left []string
	for _, name := range []string{storeFile, cacheFile} {
		if _, e := os.Lstat(filepath.Join(dir, name)); e == nil {
			left = append(left, name)
		}
	}
	if len(left) == 0 {
		if _, e := os.Stat(dir); errors.Is(e, os.ErrNotExist) {
			return fmt.Errorf("%s isn't there: mount its disk, or take its line out of cs.list", dir)
		}
		return fmt.Errorf("%w. If its disk isn't mounted, mount it", err)
	}
	return fmt.Errorf("%s: the file %q is missing, but there is %v of a chunk server. Nothing was "+
		"changed. Put the file back from a copy of this directory; without one, move the rest away, "+
		"drop this chunk server and make a new one: the other copies of its chunks are complete",
		dir, identityFile, left)
}

// putBack is what to do about files that don't belong together, unless err says it itself.
func putBack(err error) string {
	if dataplane.KindOf(err) != dataplane.Invalid ||
		strings.Contains(err.Error(), "Nothing was changed") {
		return ""
	}
	return ". Nothing was changed. Put back what belongs there; if it is gone for good, remove " +
		"this chunk server (pstorage rm-cs --force) and make a new one: the other copies of its " +
		"chunks are complete"
}

// countStart counts this start, durably: after the files were found to be right, and before the
// metadata servers are told of it.
func (s *server) countStart() error {
	if s.addr != "" {
		return errors.New("counted after listening")
	}
	s.id.Boot++
	s.id.Starts = addStart(s.id.Starts, startNumber)
	s.id.Stamp = s.shard.Stamp()
	if err := s.id.write(s.o.Dir); err != nil {
		return startError("serve chunk server "+s.o.Dir+": count this start",
			filepath.Join(s.o.Dir, identityFile), err)
	}
	if s.id.CS != 0 && s.o.OnIdentity != nil {
		s.o.OnIdentity(s.id.CS, s.id.Boot)
	}
	return s.onLoop(func(done func(error)) {
		s.shard.SetBoot(s.id.Boot)
		done(nil)
	})
}

// addStart adds the number of a new start to those since the last one that registered for certain.
// The metadata servers may have recorded any of them. Of a start in vain too many the number stays:
// it takes the place of the one before.
func addStart(starts []uint64, number func() uint64) []uint64 {
	if len(starts) == control.MaxStarts {
		return starts
	}
	return append(starts, number())
}

// startNumber is random, and not 0.
func startNumber() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:]) | 1
}

// keptStarts is how many starts an identity may name though they needn't be kept any more: it isn't
// written only for that.
const keptStarts = 16

// startConfirmed forgets the starts before this one: the metadata servers have recorded it.
func (s *server) startConfirmed() {
	n := len(s.id.Starts)
	s.id.Starts, s.id.Confirmed = s.id.Starts[n-1:], s.id.Boot
	if n <= keptStarts {
		return
	}
	if err := s.id.write(s.o.Dir); err != nil {
		s.log.Warn("the starts before this one stay on record", "dir", s.o.Dir, "err", err)
	}
}

// markRolledBack keeps durably that the metadata servers refused this directory, with err: each
// start is counted, so they wouldn't know it as an older copy after some more of them.
func (s *server) markRolledBack(err error) error {
	s.id.RolledBack = dataplane.Reason(err)
	if e := s.id.write(s.o.Dir); e != nil {
		s.log.Error("couldn't keep that this directory was rolled back: don't start it again", "dir",
			s.o.Dir, "err", e)
	}
	return dataplane.E("serve chunk server "+s.o.Dir, dataplane.Conflict, fmt.Errorf("%w. It is not "+
		"served any more; if the right one can be put back, put back all of it, the file \"identity\" "+
		"included", err))
}

// checkRolledBack refuses a directory that markRolledBack marked.
func (id *Identity) checkRolledBack() error {
	if id.RolledBack == "" {
		return nil
	}
	return fmt.Errorf("the metadata servers have refused this directory before (%s). Nothing was "+
		"changed. Put the right one back, all of it, the file \"identity\" included; if there is none, "+
		"drop this chunk server (pstorage rm-cs --force) and make a new one: the other copies of its "+
		"chunks are complete", id.RolledBack)
}

// keepStamp writes the number of the last checkpoint after an orderly stop.
func (s *server) keepStamp() error {
	s.id.Stamp = s.shard.Stamp()
	if err := s.id.write(s.o.Dir); err != nil {
		return fmt.Errorf("stop chunk server %s: write its identity: %w", s.o.Dir, err)
	}
	return nil
}

// chunksPerPart is how many chunks one InventoryReq lists: some 700 KiB.
const chunksPerPart = 32 << 10

// tellInventory sends all of a long inventory but what fits the registration, and returns the rest
// and how many parts were sent. The metadata server uses them only with the registration that says
// how many there were, over the same connection.
func (s *server) tellInventory(ctx context.Context, held []control.HeldChunk) (
	rest []control.HeldChunk, parts uint32, err error) {
	for len(held) > chunksPerPart {
		req := &control.InventoryReq{Part: parts, Chunks: held[:chunksPerPart]}
		pctx, cancel := context.WithTimeout(ctx, mdsTimeout)
		err = s.client.Call(pctx, control.OpInventory, req, nil)
		cancel()
		if err != nil {
			return nil, 0, err
		}
		held, parts = held[chunksPerPart:], parts+1
	}
	return held, parts, nil
}

// allocated is how many bytes the store takes of its file system: what was zeroed, and what was
// never written, doesn't count. 0: the store is a device, or can't be asked.
func allocated(path string) uint64 {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return 0
	}
	return uint64(st.Blocks) * 512
}

// checkSpace sees to it that chunks which are here can always be filled: a sparse store must not
// run out of space in the middle of a write-back. What they were promised and don't take yet counts
// as taken, and a reserve stays free. It stops the taking of new chunks when there is no more
// than that, and returns the capacity to be reported, so that none is placed here before.
func (s *server) checkSpace(capacity, used, taken uint64) uint64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.o.Dir, &fs); err != nil || taken == 0 {
		return capacity
	}
	left := roomFor(int64(fs.Bavail)*fs.Bsize, used, taken)
	full := left < 0
	s.shard.SetFull(full)
	if full != s.full {
		s.full = full
		s.tellFull(full, left)
	}
	// New chunks that are on their way still find room in the other half of the reserve.
	more := max(left-minReserve/2, 0) / dataplane.ChunkSize * dataplane.ChunkSize
	return min(capacity, used+uint64(more))
}

// roomFor is how many bytes of a file system, of which free are, are left for new chunks (negative:
// missing), if those that are here may fill used bytes and the store takes taken by now.
func roomFor(free int64, used, taken uint64) int64 {
	promised := int64(used/dataplane.ChunkSize*(dataplane.ChunkSize+metaPerSlot)) - int64(taken)
	return free - max(promised, 0) - minReserve/2
}

func (s *server) tellFull(full bool, left int64) {
	e := &control.Event{Severity: control.Info, Code: "space-enough",
		Message: s.o.Dir + ": its file system has room for new chunks again"}
	if full {
		e = &control.Event{Severity: control.Warning, Code: "space-low", Message: fmt.Sprintf(
			"%s: its file system has %d MiB too little to fill the chunks that are there: no new ones "+
				"are taken; make room, or move something else away from that file system", s.o.Dir,
			-left>>20)}
	}
	s.log.Warn(e.Message, "code", e.Code)
	s.md.Event(e)
}

// journalError is a failure of the log, and not of the store.
type journalError struct{ error }

func (e journalError) Unwrap() error { return e.error }

// shortage is what a write found that got ENOSPC.
type shortage struct {
	path  string // of what couldn't be written
	free  int64  // bytes of its file system then
	since time.Time
}

const (
	// spaceMore is how many bytes more of a file system must be free than when it was full, so that a
	// new start isn't in vain for what comes and goes there.
	spaceMore = minReserve / 4

	// spaceRetry is after how long a new start is tried although the file system shows no more room:
	// what is full may be below it, a thin pool for one.
	spaceRetry = 10 * time.Minute
)

// freeAt is how many bytes are free on the file system of a file; 0 if it is none's.
func freeAt(path string) int64 {
	var st syscall.Stat_t
	var fs unix.Statfs_t
	if syscall.Stat(path, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG ||
		unix.Statfs(path, &fs) != nil {
		return 0
	}
	return int64(fs.Bavail) * fs.Bsize
}

// foundFull notes where a failure is a want of space, and how much there was. mu is held.
func (s *server) foundFull(err error) {
	if !errors.Is(err, syscall.ENOSPC) {
		return
	}
	s.short.path = filepath.Join(s.o.Dir, storeFile)
	var j journalError
	if errors.As(err, &j) {
		s.short.path = s.id.logPath(s.o.Dir)
	}
	s.short.free, s.short.since = s.freeAt(s.short.path), time.Now()
}

// spaceIsBack says whether the server stopped serving because a file system was full, that one has
// more room now, and all chunks that are here could be filled. What was acknowledged is in the log:
// a new process, which the supervisor starts, writes it back and registers again. Room alone isn't
// enough: there may have been some, and still no write was possible.
func (s *server) spaceIsBack() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.short.path == "" || s.full {
		return false
	}
	return s.freeAt(s.short.path) >= s.short.free+spaceMore ||
		time.Since(s.short.since) >= spaceRetry
}
