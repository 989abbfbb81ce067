package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pstorage/chunk"
)

// journal returns where a chunk server's journal is.
func (n *node) journal(dir string) chunk.Journal {
	n.t.Helper()
	var doc csJournalDoc
	text := n.ok("", "configure-cs", "-r", dir, "-o", "json")
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		n.t.Fatal(err)
	}
	return doc.Journal
}

// says runs pstorage beside running servers: it must fail with the status and say text.
func (n *node) says(status int, text string, args ...string) {
	n.t.Helper()
	if r := n.run("", "pstorage", args...); r.status != status || !strings.Contains(r.stderr, text) {
		n.t.Errorf("pstorage %v: status %d, %q; want %d and %q", args, r.status, r.stderr, status, text)
	}
}

// A journal that moves to a place that doesn't keep it through a power cut is warned of.
func TestConfigureCSWarns(t *testing.T) {
	if _, m := disksOf(hostSystem, "/dev/shm"); m.fsType != "tmpfs" {
		t.Skip("there is no file system in memory here")
	}
	n := newNode(t)
	_, _ = n.makeCluster(1)
	dir, err := os.MkdirTemp("/dev/shm", "pstorage")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	n.says(0, "may lose acknowledged data in a power cut", "configure-cs", "-r", n.path("c1-cs1"),
		"-j", dir, "-s", "64M")
}

// TestConfigureCS moves the journal of the only copy of a file, with the server running, and with
// the command killed in the midst.
func TestConfigureCS(t *testing.T) {
	if why := cannotMount(); why != "" {
		t.Skip(why)
	}
	n := newNode(t)
	_, _ = n.makeCluster(1)
	n.ok("", "set-attr", "/", "replicas=1:1")
	csd := n.start("pstorage-csd")
	csd.waitFor("ready on")
	eventually(t, "the chunk server is active", func() bool { return n.active() == 1 })
	dir, ssd, at := n.path("c1-cs1"), n.path("ssd"), n.path("mnt")
	for _, d := range []string{ssd, at} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.ok("", "mount", at)
	n.says(1, "is mounted there already", "mount", at) // the command run twice
	n.says(1, "path inside the cluster: /nothing", "file-info", at+"/nothing")
	n.says(1, "path inside the cluster: /nothing", "revoke", at+"/nothing")
	n.says(1, "in the cluster itself", "-c", "c1", "make-cs", "-r", at+"/deep/cs", "-s", "64M")
	n.says(2, "--cs 0", "scrub", "start", "--cs", "0")
	n.says(2, "--cs 0", "scrub", "status", "--cs", "0")
	defer n.run("", "pstorage", "umount", "--lazy", at)
	data := make([]byte, 8<<20)
	rand.Read(data)
	file := filepath.Join(at, "disk")
	put := func(off int64, part []byte) {
		t.Helper()
		copy(data[off:], part)
		f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			_, err = f.WriteAt(part, off)
		}
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	same := func(when string) {
		t.Helper()
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s: the file differs, %v", when, err)
		}
	}
	put(0, data)
	n.says(1, "cs.list", "configure-cs", "-r", ssd, "-d")
	n.says(2, "only one of them", "configure-cs", "-r", dir, "-d", "-j", ssd)
	n.says(1, "there is a file already", "configure-cs", "-r", dir, "-j", file)

	out := n.ok("", "configure-cs", "-r", dir, "-j", ssd, "-s", "96M")
	if j := n.journal(dir); filepath.Dir(j.Path) != ssd || j.Size != 96<<20 {
		t.Fatalf("%+v after %q", j, out)
	}
	put(1<<20, bytes.Repeat([]byte{7}, 64<<10)) // waits until the server is back
	same("after the move")

	kills := 0
	for i := range 8 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(30<<i)*time.Millisecond)
		cmd := n.command(ctx, "pstorage", "configure-cs", "-r", dir, "-s", []string{"80M", "64M"}[i%2])
		if err := cmd.Run(); err != nil {
			kills++
		}
		cancel()
		put(int64(i)<<16, bytes.Repeat([]byte{byte(i)}, 4096))
	}
	same("after kills")
	if kills == 0 {
		t.Error("the command was never killed")
	}
	n.ok("", "configure-cs", "-r", dir, "-d")
	back := n.journal(dir)
	if filepath.Dir(back.Path) != dir {
		t.Errorf("%+v", back)
	}
	n.ok("", "configure-cs", "-r", dir, "-d") // it is there: the server goes on
	if j := n.journal(dir); j != back {
		t.Errorf("-d made %+v of %+v", j, back)
	}
	same("at the end")
	if left, _ := os.ReadDir(ssd); len(left) > 0 {
		t.Errorf("left on the SSD: %v", left)
	}
	if text := csd.out.text(); strings.Contains(text, "panic") {
		t.Error(text)
	}
}

func TestBesides(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c-cs.journal")
	for _, want := range []string{path + ".2", path + ".3", path + ".4"} {
		if path = besides(path); path != want {
			t.Fatalf("%s, want %s", path, want)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := besides(filepath.Join(dir, "c-cs.journal")); got != filepath.Join(dir,
		"c-cs.journal.5") {
		t.Errorf("beside three others: %s", got)
	}
	// What can't be looked up is left to whoever makes the file.
	in := filepath.Join(path, "journal") // a file isn't a directory
	if got := besides(in); got != in+".2" {
		t.Errorf("where no name can be looked up: %s", got)
	}
}

func TestProgressText(t *testing.T) {
	for _, c := range []struct {
		done, moved int64
		took        time.Duration
		want        string
	}{
		{1 << 30, 0, 0, "copy: 1.0 GiB of 4.0 GiB"},
		{1 << 30, 1 << 30, 10 * time.Second, "copy: 1.0 GiB of 4.0 GiB, 102.4 MiB/s, about 30s left"},
		{4 << 30, 4 << 30, 10 * time.Second, "copy: 4.0 GiB of 4.0 GiB, 409.6 MiB/s"},
	} {
		if got := progressText("copy", c.done, 4<<30, c.moved, c.took); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// TestProgressLines: what isn't a terminal gets plain lines, not too many, and none for quick work.
func TestProgressLines(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out, false)
	clock := time.Unix(0, 0)
	p.now = func() time.Time { return clock }
	for i := range int64(5) {
		p.bytes("quick", i*100, 400)
		clock = clock.Add(100 * time.Millisecond)
	}
	if out.Len() > 0 {
		t.Errorf("quick work says %q", &out)
	}
	for i := range int64(121) {
		p.bytes("slow", i<<20, 120<<20)
		clock = clock.Add(250 * time.Millisecond)
	}
	p.end()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) < 5 || len(lines) > 8 || strings.ContainsAny(out.String(), "\r\x1b") ||
		!strings.Contains(lines[0], "4.0 MiB/s") {
		t.Errorf("slow work says %q", lines)
	}
}
