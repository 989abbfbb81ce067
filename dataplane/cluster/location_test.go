package cluster

import (
	"os"
	"path/filepath"
	"testing"

	"pstorage/dataplane"
)

func TestLocation(t *testing.T) {
	dir := t.TempDir()
	if got, err := Location(dir); got != "" || err != nil {
		t.Errorf("without a file: %q, %v", got, err)
	}
	for text, want := range map[string]string{
		"room1/row2/rack-3\n":           "room1/row2/rack-3",
		"# where we are\n\n  r1/w2  \n": "r1/w2",
		"":                              "",
		"r":                             "r",
		"a/b/c/d":                       "bad",
		"a//c":                          "bad",
		"a b":                           "bad",
		"a\nb":                          "bad",
	} {
		if err := os.WriteFile(filepath.Join(dir, locationFile), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := Location(dir)
		if want == "bad" && dataplane.KindOf(err) != dataplane.Invalid ||
			want != "bad" && (err != nil || got != want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
