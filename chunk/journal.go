package chunk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/ssdcache"
)

// The change of a chunk server's journal to another place or size, while nobody serves it:
//
//	0 claim    a device is opened for this process alone, and must be empty
//	1 drain    the old journal is written back to the store, all of it, and closed
//	2 intend   the file "journal-change" says what is about to happen, durably
//	3 make     the new journal is made; it goes on with the old one's batch numbers, so that the
//	           store takes it for its successor (stamp.go)
//	4 try      store and new journal are opened together, and closed again
//	5 commit   the identity is replaced by one that names the new journal
//	6 wipe     the old journal is deleted; a device loses its superblocks
//	7 forget   "journal-change" is deleted
//
// Until 5 the old journal holds everything, after it the new one, and the identity alone says which
// it is: whenever the process or the power ends, the server starts with the right one. What is left
// of the other one is removed by the next start or the next change (settleJournal).
const journalChangeFile = "journal-change"

// JournalChange is where a chunk server's journal shall be.
type JournalChange struct {
	// Path of a file that isn't there yet, or of a block device; empty: in the directory.
	Path string
	Size int64 // of a file, bytes; 0: as it is now
	// Lock is the directory's file "lock", locked by the caller; nil: ChangeJournal locks it.
	Lock *os.File
	// Progress, if not nil, is told now and then how far a step is, in bytes.
	Progress func(step string, done, total int64)
	Log      *slog.Logger // nil: slog.Default()
}

// The steps that JournalChange.Progress names.
const (
	StepDrain = "write the old journal back"
	StepMake  = "make the new journal"
)

// ErrServed is in the error of ChangeJournal when a process serves the directory.
var ErrServed = errors.New("another process is serving it; there must be only one")

// Journal is a chunk server's journal as it is.
type Journal struct {
	Path   string `json:"path"` // absolute
	Size   int64  `json:"size"` // bytes
	Device bool   `json:"device"`
}

// JournalOf describes the journal of the chunk server in dir.
func JournalOf(dir string) (Journal, error) {
	id, err := ReadIdentity(dir)
	if err != nil {
		return Journal{}, err
	}
	path, err := filepath.Abs(id.logPath(dir))
	if err != nil {
		return Journal{}, err
	}
	j := Journal{Path: path}
	f, err := os.Open(path)
	if err != nil {
		return j, openError("look at chunk server "+dir, "its journal", path, err)
	}
	defer f.Close()
	if j.Size, err = f.Seek(0, 2); err != nil { // of devices, too
		return j, err
	}
	info, err := f.Stat()
	if err == nil {
		j.Device = info.Mode()&os.ModeDevice != 0
	}
	return j, err
}

// changer is one change of a journal.
type changer struct {
	o    JournalChange
	dir  string
	id   *Identity
	next Identity // with the new journal
	size int64
	// place is that of the new journal, once it is claimed; nil before.
	place *logPlace
	log   *slog.Logger
	// after is called after each step, for tests that end the process there.
	after func(step int)
}

// ChangeJournal moves the journal of the chunk server in dir, or changes its size. Without
// o.Lock the error wraps ErrServed if another process has it. If it fails before the change
// is made, the old journal stays in use.
func ChangeJournal(dir string, o JournalChange) (Journal, error) {
	c := &changer{o: o, log: o.Log, after: func(int) {}}
	return c.run(dir)
}

func (c *changer) run(dir string) (j Journal, err error) {
	if c.log == nil {
		c.log = slog.Default()
	}
	if c.dir, err = filepath.Abs(dir); err != nil {
		return j, err
	}
	if c.o.Lock == nil {
		lock, err := lockDir(c.dir)
		if err != nil {
			return j, err
		}
		defer lock.Close()
	}
	if c.id, err = ReadIdentity(c.dir); err != nil {
		return j, err
	}
	if err := settleJournal(c.dir, c.id, c.log); err != nil {
		return j, err
	}
	if err := c.plan(); err != nil {
		return j, err
	}
	if err := c.change(); err != nil {
		return j, err
	}
	return JournalOf(c.dir)
}

// plan chooses path and size of the new journal.
func (c *changer) plan() error {
	what := "change the journal of chunk server " + c.dir
	old, err := JournalOf(c.dir)
	if err != nil {
		return err
	}
	c.next = *c.id
	c.size = c.o.Size &^ (1<<20 - 1)
	if c.o.Size == 0 {
		c.size = max(old.Size&^(1<<20-1), minLogSize)
	}
	if c.o.Size < 0 || c.size < minLogSize {
		return dataplane.E(what, dataplane.Invalid, fmt.Errorf(
			"a journal of %d KiB is too small, it takes at least %d MiB", c.o.Size>>10, minLogSize>>20))
	}
	if c.o.Path == "" {
		c.next.LogPath = freeName(c.dir)
		return c.checkRoom(what, c.dir)
	}
	if c.next.LogPath, err = filepath.Abs(c.o.Path); err != nil {
		return err
	}
	info, err := os.Stat(c.next.LogPath)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return c.checkRoom(what, filepath.Dir(c.next.LogPath))
	case err != nil:
		return err
	case info.Mode()&os.ModeDevice == 0:
		return dataplane.E(what, dataplane.Exists, fmt.Errorf("%s is there already", c.next.LogPath))
	case sameDevice(c.next.LogPath, old.Path):
		return dataplane.E(what, dataplane.Invalid, fmt.Errorf("it is on %s already, all of it",
			old.Path))
	}
	return nil
}

// sameDevice says whether two paths name the same device: making the new journal there would
// destroy the old one, and removing the old one would destroy the new.
func sameDevice(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil &&
		x.Mode&unix.S_IFMT == y.Mode&unix.S_IFMT && x.Rdev == y.Rdev
}

// checkRoom says whether a file of the journal's size fits beside the old one, before anything is
// begun that takes long.
func (c *changer) checkRoom(what, dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("%s: look at %s: %w", what, dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; c.size > free {
		return dataplane.E(what, dataplane.NoSpace, fmt.Errorf("a journal of %d MiB doesn't fit on the "+
			"file system of %s: %d MiB are free (the old one goes only when the new one is there)",
			c.size>>20, dir, free>>20))
	}
	return nil
}

// freeName returns a name for a journal in dir that nothing has.
func freeName(dir string) string {
	for i := 1; ; i++ {
		name := cacheFile
		if i > 1 {
			name = fmt.Sprintf("%s.%d", cacheFile, i)
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) {
			return name
		}
	}
}

// change takes the steps.
func (c *changer) change() error {
	if err := c.claimDevice(); err != nil {
		return err
	}
	defer func() { c.place.close() }()
	batch, mark, err := c.open(c.id, true)
	if err != nil {
		return err
	}
	c.after(1)
	c.next.Stamp = c.id.Stamp
	if err := c.intend(); err != nil {
		return err
	}
	c.after(2)
	if err = c.make(batch, mark); err == nil {
		c.after(3)
		_, _, err = c.open(&c.next, false)
	}
	if err != nil {
		return errors.Join(err, settleJournal(c.dir, c.id, c.log))
	}
	c.after(4)
	if err := c.next.write(c.dir); err != nil {
		return startError("name the new journal", filepath.Join(c.dir, identityFile), err)
	}
	c.after(5)
	return settleJournal(c.dir, &c.next, c.log)
}

// claimDevice takes the device that the journal goes to, nil if it goes to a file. That is before
// the drain, which takes long: who is told to use the same device meanwhile is refused at once.
func (c *changer) claimDevice() (err error) {
	path := c.next.logPath(c.dir)
	if isDevice(path) {
		c.place, err = claimLog(path, c.log)
	}
	return startError("make the journal "+path, path, err)
}

// intend notes the change, and claims the file if the journal goes to one: as what the note names
// is removed after an interruption, nothing may be left unnamed. What is somebody else's is left
// alone, and not noted: a device must still be empty, a file not be there yet.
func (c *changer) intend() (err error) {
	path := c.next.logPath(c.dir)
	what := "make the journal " + path
	if c.place != nil {
		if err := c.place.check(); err != nil {
			return startError(what, path, err)
		}
	}
	note := journalNote{Old: c.id.logPath(c.dir), New: path}
	if err := note.write(c.dir); err != nil {
		return startError("note the change of the journal", c.dir, err)
	}
	if c.place == nil {
		if c.place, err = claimLog(path, c.log); err != nil {
			return errors.Join(startError(what, path, err), forgetNote(c.dir))
		}
	}
	return nil
}

func (c *changer) make(batch, mark uint64) error {
	path := c.place.path
	progress := func(done, total int64) { c.tell(StepMake, done, total) }
	err := makeLog(c.place, c.size, ssdcache.FormatOptions{FirstBatch: batch, Mark: mark,
		Owner: ownerOf(c.id.logUUID()), Progress: progress}, c.log)
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return startError("make the journal "+path, path, err)
	}
	return nil
}

func (c *changer) tell(step string, done, total int64) {
	if c.o.Progress != nil {
		c.o.Progress(step, done, total)
	}
}

// open opens store and journal as a server does, drains the journal if asked to, and closes both.
// It returns where a successor of the journal begins.
func (c *changer) open(id *Identity, drain bool) (batch, mark uint64, err error) {
	s := &server{o: Options{Dir: c.dir, ScrubPeriod: -1}, log: c.log, id: id, freeAt: freeAt}
	if err := s.startLoop(); err != nil {
		return 0, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- s.loop.Run() }()
	if err = s.open(context.Background(), &session.Credentials{Cluster: id.cluster()}); err == nil {
		if drain {
			err = c.drain(s)
		}
		err = errors.Join(err, s.stop())
	}
	s.loop.Stop()
	err = errors.Join(err, <-ended, s.loop.Close())
	if err != nil {
		return 0, 0, err
	}
	if n := s.shard.log.Undrained(); drain && n > 0 {
		return 0, 0, fmt.Errorf("the journal of %s still holds %d bytes after it was written back",
			c.dir, n)
	}
	id.Stamp = s.shard.Stamp()
	return s.shard.log.NextBatch(), id.Stamp, nil
}

// drain empties the journal and tells how far it is.
func (c *changer) drain(s *server) error {
	var undrained int64
	ask := func() error {
		return s.onLoop(func(done func(error)) {
			undrained = s.shard.log.Undrained()
			done(nil)
		})
	}
	if err := ask(); err != nil {
		return err
	}
	total := undrained
	result := make(chan error, 1)
	go func() { result <- s.onLoop(func(done func(error)) { s.shard.log.Drain(done) }) }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-result:
			if err == nil {
				c.tell(StepDrain, total, total)
			}
			return err
		case <-tick.C:
			if ask() == nil {
				c.tell(StepDrain, total-min(undrained, total), total)
			}
		}
	}
}

// offlineMetadata stands for metadata servers that can't be reached. Nothing asks it: a server
// without a lease settles nothing.
type offlineMetadata struct{}

var errOffline = dataplane.E("ask the metadata servers", dataplane.Unreachable,
	errors.New("this chunk server isn't being served"))

func (offlineMetadata) GetChunk(_ dataplane.ChunkID, cb func(*control.ChunkConfig, error)) {
	cb(nil, errOffline)
}

func (offlineMetadata) Reconfigure(_ *control.ReconfigureReq,
	cb func(*control.ChunkConfig, error)) {
	cb(nil, errOffline)
}

func (offlineMetadata) Unreachable(*control.UnreachableReq) {}
func (offlineMetadata) Event(*control.Event)                {}

// journalNote is the file "journal-change": one line of JSON with two absolute paths, then the line
// "crc32c XXXXXXXX", as in the file "identity".
type journalNote struct {
	Old, New string
}

func (n *journalNote) write(dir string) error {
	b, err := n.encode()
	if err != nil {
		return err
	}
	return writeFileDurably(filepath.Join(dir, journalChangeFile), b)
}

func (n *journalNote) encode() ([]byte, error) {
	b, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	return append(b, identityTrailer(b)...), nil
}

// readJournalNote returns nil if there is none.
func readJournalNote(dir string) (*journalNote, error) {
	path := filepath.Join(dir, journalChangeFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n, err := decodeJournalNote(b)
	if err != nil {
		return nil, fmt.Errorf("%s: can't be used: %w; delete it, and the journal that the file "+
			"\"identity\" doesn't name", path, err)
	}
	return n, nil
}

func decodeJournalNote(b []byte) (*journalNote, error) {
	const trailer = len("crc32c 00000000\n")
	if len(b) < trailer || len(b) > 1<<16 ||
		string(b[len(b)-trailer:]) != identityTrailer(b[:len(b)-trailer]) {
		return nil, errors.New("it is damaged (checksum mismatch)")
	}
	n := &journalNote{}
	if err := json.Unmarshal(b[:len(b)-trailer], n); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(n.Old) || !filepath.IsAbs(n.New) || n.Old == n.New {
		return nil, errors.New("it doesn't name two journals")
	}
	return n, nil
}

// settleJournal ends a change that was interrupted, or the one that was just made: the journal that
// id doesn't name goes away. The caller has the lock.
func settleJournal(dir string, id *Identity, log *slog.Logger) error {
	n, err := readJournalNote(dir)
	if n == nil || err != nil {
		return err
	}
	inUse, err := filepath.Abs(id.logPath(dir))
	if err != nil {
		return err
	}
	other := n.Old
	switch inUse {
	case n.Old:
		other = n.New
		log.Warn("a change of the journal was interrupted: the old one stays", "journal", inUse,
			"not", n.New)
	case n.New:
	default:
		return fmt.Errorf("%s names the journals %s and %s, in use is %s; delete what isn't in use and "+
			"that file", filepath.Join(dir, journalChangeFile), n.Old, n.New, inUse)
	}
	if err := wipeJournal(other, ownerOf(id.logUUID())); err != nil {
		return fmt.Errorf("remove the journal %s, which isn't in use: %w", other, err)
	}
	return forgetNote(dir)
}

func forgetNote(dir string) error {
	if err := os.Remove(filepath.Join(dir, journalChangeFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

// wipeJournal deletes a journal file, or takes a device's superblocks away, if it is a journal of
// that owner, or one that wasn't finished (zeros).
func wipeJournal(path string, owner uint64) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DSYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, ssdcache.HeadSize)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF { // a file that was just begun may be shorter
		return err
	}
	head = head[:n]
	if !isZero(head) && ssdcache.OwnerOf(head) != owner {
		return errors.New("there is something else now; delete the file " + journalChangeFile +
			" if that is to stay")
	}
	if info.Mode()&os.ModeDevice != 0 {
		if isZero(head) {
			return nil // and it may be somebody else's by now, who begins with it
		}
		clear(head)
		_, err = f.WriteAt(head, 0)
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
