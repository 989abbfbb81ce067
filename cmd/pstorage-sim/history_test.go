package main

import (
	"log/slog"
	"testing"

	"pstorage/uring/simloop"
)

func newTestWorld() *world {
	return &world{sim: simloop.New(1), log: slog.New(quiet{}), areas: areas}
}

// TestVersions feeds the online check of files with one serial writer.
func TestVersions(t *testing.T) {
	for _, c := range []struct {
		name string
		read uint64
		late bool // the read begins after the second write was acknowledged
		bad  bool
	}{
		{"first while the second is in flight", 1, false, false},
		{"second while it is in flight", 2, false, false},
		{"zeros after the first was acknowledged", 0, false, true},
		{"second after its acknowledgement", 2, true, false},
		{"first after the second's acknowledgement", 1, true, true},
		{"never written", 9, true, true},
	} {
		w := newTestWorld()
		f := newFile(w, 0)
		f.invoke(0, 4096, 1)
		f.acked(0, 4096)
		f.invoke(0, 4096, 2)
		if c.late {
			f.acked(0, 4096)
		}
		r := f.beginRead(0, 4096)
		p := make([]byte, 4096)
		for i := 0; i < len(p); i += 8 {
			p[i] = byte(c.read)
		}
		r.returned(p, "test")
		if got := len(w.violations) > 0; got != c.bad {
			t.Errorf("%s: violations %q", c.name, w.violations)
		}
	}
}

// TestReadsDontGoBack: once a read has returned a write in flight, later ones must, too; also for
// parts of blocks, and for zeros.
func TestReadsDontGoBack(t *testing.T) {
	w := newTestWorld()
	f := newFile(w, 0)
	f.invoke(0, 4096, 7)
	f.acked(0, 4096)
	f.invoke(512, 512, 0)
	page := func(tags ...uint64) []byte {
		p := make([]byte, len(tags)*512)
		for i := range p {
			if i%8 == 0 {
				p[i] = byte(tags[i/512])
			}
		}
		return p
	}
	f.beginRead(0, 1024).returned(page(7, 0), "new")
	if len(w.violations) > 0 {
		t.Fatal(w.violations)
	}
	f.beginRead(0, 512).returned(page(7), "untouched part")
	if len(w.violations) > 0 {
		t.Fatal(w.violations)
	}
	f.beginRead(0, 1024).returned(page(7, 7), "old again")
	if len(w.violations) != 1 {
		t.Fatalf("violations %q", w.violations)
	}
	torn := page(7, 0)
	torn[8] = 9
	f.beginRead(0, 1024).returned(torn, "torn")
	if len(w.violations) < 2 {
		t.Fatal("a torn sector wasn't noticed")
	}
}
