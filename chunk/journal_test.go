package chunk

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
	"pstorage/ssdcache"
)

// journalChild has the test binary change a journal and end by SIGKILL: "DIR STEP PATH SIZE". A
// step above 100 means so many microseconds after the start.
const journalChild = "CHUNK_TEST_JOURNAL"

func TestJournalChild(t *testing.T) {
	spec := os.Getenv(journalChild)
	if spec == "" {
		t.Skip("the child process of TestChangeJournal")
	}
	var dir, path string
	var step int
	var size int64
	if _, err := fmt.Sscan(spec, &dir, &step, &path, &size); err != nil {
		t.Fatal(err)
	}
	die := func() { syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }
	if step > 100 { // at a random moment
		go func() { time.Sleep(time.Duration(step) * time.Microsecond); die() }()
	}
	c := &changer{o: JournalChange{Path: strings.TrimPrefix(path, "-"), Size: size},
		log: slog.New(slog.DiscardHandler), after: func(s int) {
			if s == step {
				die()
			}
		}}
	if _, err := c.run(dir); err != nil {
		t.Fatal(err)
	}
}

// journalWorld is a chunk server with data on it, whose journal is changed.
type journalWorld struct {
	t    *testing.T
	dir  string
	m    *tableMDS
	id   dataplane.CSID
	want map[uint32][]byte // by offset
}

func newJournalWorld(t *testing.T) *journalWorld {
	w := &journalWorld{t: t, dir: filepath.Join(t.TempDir(), "cs"), m: startTableMDS(t),
		want: map[uint32][]byte{}}
	formatReal(t, w.dir)
	r := runReal(t, w.dir, w.m)
	w.id = r.id
	w.m.add(chunkA, r.id)
	r.end(t)
	return w
}

// serve starts the server, compares all data, writes more, and stops it.
func (w *journalWorld) serve() {
	t := w.t
	t.Helper()
	r := runReal(t, w.dir, w.m)
	nc := dialReal(t, r.addr, dataplane.RoleClient)
	w.compare(nc)
	for range 20 {
		off := mrand.Uint32N(1000) * 4096
		data := make([]byte, 4096)
		rand.Read(data)
		h := dataplane.Header{Op: dataplane.OpWrite, ReqID: 1, Chunk: chunkA, Epoch: 1, Offset: off}
		if st, _ := ask(t, nc, h, data); st != dataplane.OK {
			t.Fatalf("write: %v", st)
		}
		w.want[off] = data
	}
	w.compare(nc)
	r.end(t)
}

func (w *journalWorld) compare(nc *session.NetConn) {
	w.t.Helper()
	for off, data := range w.want {
		h := dataplane.Header{Op: dataplane.OpRead, ReqID: 2, Chunk: chunkA, Epoch: 1, Offset: off,
			Length: uint32(len(data))}
		if st, got := ask(w.t, nc, h, nil); st != dataplane.OK || !bytes.Equal(got, data) {
			w.t.Fatalf("read at %d: %v, right %v", off, st, bytes.Equal(got, data))
		}
	}
}

// kill changes the journal in a process that is killed. It says whether that came about.
func (w *journalWorld) kill(step int, path string, size int64) bool {
	w.t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestJournalChild$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d -%s %d", journalChild, w.dir, step,
		path, size))
	out, err := cmd.CombinedOutput()
	if err == nil && step > 100 {
		return false // it was quicker
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		w.t.Fatalf("step %d: the child wasn't killed: %v\n%s", step, err, out)
	}
	return true
}

// journals lists the files that look like journals, and what notes there are.
func (w *journalWorld) journals(more ...string) (list []string) {
	w.t.Helper()
	for _, pattern := range append(more, filepath.Join(w.dir, "cache*"),
		filepath.Join(w.dir, journalChangeFile)) {
		found, err := filepath.Glob(pattern)
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, found...)
	}
	return list
}

// TestChangeJournal moves, enlarges, shrinks and takes back a journal, the process being killed
// after each step and at random moments: data stay, and in the end there is one journal.
func TestChangeJournal(t *testing.T) {
	w := newJournalWorld(t)
	w.serve()
	ssd := filepath.Join(t.TempDir(), "ssd.journal")
	at := func() Journal {
		t.Helper()
		j, err := JournalOf(w.dir)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	for step := 1; step <= 5; step++ {
		before := at()
		path, size := ssd, int64(48<<20)
		if before.Path == ssd {
			path, size = "", 24<<20
		}
		w.kill(step, path, size)
		if moved := at().Path != before.Path; moved != (step == 5) {
			t.Fatalf("killed after step %d: journal was %s, is %s", step, before.Path, at().Path)
		}
		w.serve()
		if list := w.journals(ssd); len(list) != 1 || list[0] != at().Path {
			t.Fatalf("killed after step %d: there are %v", step, list)
		}
	}
	kills := 0
	for i := range 12 {
		took := 2000 * math.Pow(1.65, float64(i)) // 2 ms to 0.5 s
		if w.kill(int(took), map[bool]string{true: ssd}[at().Path != ssd], 32<<20) {
			kills++
		}
		w.serve()
		if list := w.journals(ssd); len(list) != 1 || list[0] != at().Path {
			t.Fatalf("killed after %v us: there are %v", took, list)
		}
	}
	if kills < 3 {
		t.Errorf("only %d of 12 changes were killed", kills)
	}
	for _, o := range []JournalChange{{Path: ssd, Size: 64 << 20}, {Size: 20 << 20}, {}} {
		if o.Path == at().Path {
			continue
		}
		steps := map[string]bool{}
		o.Progress = func(step string, done, total int64) { steps[step] = done == total }
		j, err := ChangeJournal(w.dir, o)
		if err != nil || o.Size > 0 && j.Size != o.Size || !steps[StepDrain] || !steps[StepMake] {
			t.Fatalf("%+v: %+v, %v, steps %v", o, j, err, steps)
		}
		w.serve()
	}
	if list := w.journals(ssd); len(list) != 1 {
		t.Errorf("left: %v", list)
	}
}

// TestChangeJournalRefused: what can't be done changes nothing.
func TestChangeJournalRefused(t *testing.T) {
	w := newJournalWorld(t)
	w.serve()
	used := filepath.Join(t.TempDir(), "used")
	if err := os.WriteFile(used, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.journals()
	for _, o := range []JournalChange{{Path: used}, {Size: ssdcache.MinSize / 2},
		{Path: "/nowhere/journal"}, {Path: w.dir}, {Size: 1 << 10}, {Size: -1}, {Size: 1 << 58}} {
		if _, err := ChangeJournal(w.dir, o); err == nil {
			t.Errorf("%+v was done", o)
		}
	}
	if b, err := os.ReadFile(used); err != nil || string(b) != "mine" {
		t.Errorf("a foreign file is %q now, %v", b, err)
	}
	r := runReal(t, w.dir, w.m)
	if _, err := ChangeJournal(w.dir, JournalChange{}); err == nil || !strings.Contains(err.Error(),
		ErrServed.Error()) {
		t.Errorf("while it is served: %v", err)
	}
	r.end(t)
	if after := w.journals(); len(after) != len(before) || after[0] != before[0] {
		t.Errorf("was %v, is %v", before, after)
	}
	// A note that doesn't fit is no reason to delete anything.
	note := journalNote{Old: used, New: "/nowhere/else"}
	if err := note.write(w.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := ChangeJournal(w.dir, JournalChange{}); err == nil {
		t.Error("a foreign note was followed")
	}
	if _, err := os.Stat(used); err != nil {
		t.Error(err)
	}
	w.serve()
	if err := os.WriteFile(filepath.Join(w.dir, journalChangeFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ChangeJournal(w.dir, JournalChange{}); err == nil {
		t.Error("a damaged note was followed")
	}
	w.serve()
}

// loopDevice makes a block device of 24 MiB of zeros, out of a file.
func loopDevice(t *testing.T) (image, dev string) {
	t.Helper()
	image = filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 24<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", image).Output()
	if err != nil {
		t.Skip("no loop device: ", err)
	}
	dev = strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", dev).Run() })
	return image, dev
}

// TestJournalTaken: what another server has as its journal, or began to make one of meanwhile,
// isn't touched, and the old journal stays.
func TestJournalTaken(t *testing.T) {
	_, dev := loopDevice(t)
	first, second := newJournalWorld(t), newJournalWorld(t)
	first.serve()
	second.serve()
	before := second.journals()
	refused := func(what, path, says string, meanwhile func()) {
		t.Helper()
		c := &changer{o: JournalChange{Path: path}, log: slog.New(slog.DiscardHandler),
			after: func(step int) {
				if step == 1 && meanwhile != nil {
					meanwhile()
				}
			}}
		if _, err := c.run(second.dir); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", what, err, says)
		}
		if after := second.journals(); len(after) != 1 || after[0] != before[0] {
			t.Errorf("%s: was %v, is %v", what, before, after)
		}
		second.serve()
	}
	head := func(b []byte) {
		t.Helper()
		f, err := os.OpenFile(dev, os.O_RDWR, 0)
		if err == nil {
			_, err = f.WriteAt(b, deviceHead-512)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	refused("somebody writes to it", dev, "isn't empty", func() { head([]byte("mine")) })
	head(make([]byte, 4))
	refused("two at the same time", dev, "isn't empty", func() {
		if err := CheckDevice(dev); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("a device that becomes a journal: %v", err)
		}
		_, err := ChangeJournal(first.dir, JournalChange{Path: dev})
		if err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("the second one to take it: %v", err)
		}
		head([]byte("mine"))
	})
	head(make([]byte, 4))
	if _, err := ChangeJournal(first.dir, JournalChange{Path: dev}); err != nil {
		t.Fatal(err)
	}
	refused("the journal of another server", dev, "isn't empty", nil)
	first.serve()
	file := filepath.Join(t.TempDir(), "journal")
	refused("a file that came meanwhile", file, "there already", func() {
		if _, err := ChangeJournal(first.dir, JournalChange{Path: file}); err != nil {
			t.Error(err)
		}
	})
	first.serve()
}

// TestJournalOnSameDevice: a journal isn't moved to the device that it is on, whatever name that is
// given: making the new one would destroy it.
func TestJournalOnSameDevice(t *testing.T) {
	image, dev := loopDevice(t)
	alias := filepath.Join(t.TempDir(), "alias")
	if err := os.Symlink(dev, alias); err != nil {
		t.Fatal(err)
	}
	w := newJournalWorld(t)
	w.serve()
	if j, err := ChangeJournal(w.dir, JournalChange{Path: dev}); err != nil || !j.Device {
		t.Fatalf("to a device: %+v, %v", j, err)
	}
	w.serve()
	for _, path := range []string{dev, alias} {
		_, err := ChangeJournal(w.dir, JournalChange{Path: path})
		if dataplane.KindOf(err) != dataplane.Invalid {
			t.Errorf("from %s to %s: %v", dev, path, err)
		}
		w.serve()
	}
	if _, err := ChangeJournal(w.dir, JournalChange{}); err != nil {
		t.Fatal(err)
	}
	w.serve()
	head, err := os.ReadFile(image)
	if err != nil || !isZero(head[:ssdcache.HeadSize]) {
		t.Errorf("the device still looks like a journal, %v", err)
	}
}

// TestWipeJournalReads: what can't be read isn't taken for an empty journal.
func TestWipeJournalReads(t *testing.T) {
	if err := wipeJournal("/proc/self/mem", 1); !errors.Is(err, syscall.EIO) {
		t.Errorf("wiping what can't be read: %v", err)
	}
}

// TestOldJournalPutBack: the journal of before a change isn't taken for the right one once anything
// happened since.
func TestOldJournalPutBack(t *testing.T) {
	w := newJournalWorld(t)
	w.serve()
	old, err := os.ReadFile(filepath.Join(w.dir, cacheFile))
	if err != nil {
		t.Fatal(err)
	}
	j, err := ChangeJournal(w.dir, JournalChange{Size: 24 << 20})
	if err != nil {
		t.Fatal(err)
	}
	w.serve()
	if err := os.WriteFile(j.Path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = ChangeJournal(w.dir, JournalChange{Size: 32 << 20}) // opens it as a server does
	if dataplane.KindOf(err) != dataplane.Invalid {
		t.Errorf("the old journal is taken: %v", err)
	}
}
