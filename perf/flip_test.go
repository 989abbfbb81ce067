package perf

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestFindAndFlip(t *testing.T) {
	dir := t.TempDir()
	pattern := []byte("needle-in-a-chunk")
	path := filepath.Join(dir, "sub", "store")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// At the start, across two windows, behind a hole, at the very end.
	const size = 64 << 20
	places := []int64{0, flipWindow - 5, 40 << 20, size - int64(len(pattern))}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 2*flipWindow), 0); err != nil {
		t.Fatal(err)
	}
	for _, at := range places {
		if _, err := f.WriteAt(pattern, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cache"), pattern, 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := FindPattern(dir, "store", pattern, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != len(places) {
		t.Fatalf("found %v, want offsets %v", found, places)
	}
	for i, at := range places {
		if found[i] != (Found{path, at}) {
			t.Errorf("place %d: %v, want offset %d", i, found[i], at)
		}
	}
	if one, err := FindPattern(dir, "", pattern, 1); err != nil || len(one) != 1 {
		t.Errorf("the first place only: %v, %v", one, err)
	}
	if few := Sparse(found, flipWindow); len(few) != 3 || few[1] != found[2] {
		t.Errorf("at least %d bytes apart: %v of %v", flipWindow, few, found)
	}
	if err := Flip(found[1:2]); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(pattern))
	if _, err := f.ReadAt(got, places[1]); err != nil {
		t.Fatal(err)
	}
	if want := append([]byte{pattern[0] ^ 1}, pattern[1:]...); !bytes.Equal(got, want) {
		t.Errorf("after the flip %q, want %q", got, want)
	}
	everywhere, err := FindPattern(dir, "", pattern, 0)
	if err != nil || len(everywhere) != len(places) { // one flipped, one in the other file
		t.Errorf("found %v, %v in all files", everywhere, err)
	}
	if _, err := FindPattern(dir, "", []byte("short"), 0); err == nil {
		t.Error("a short pattern is accepted")
	}
}
