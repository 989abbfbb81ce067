package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pstorage/cmd/cli"
	"pstorage/dataplane/fuse"
)

func TestParseOptions(t *testing.T) {
	root := os.Geteuid() == 0
	tests := []struct {
		list string
		want fsOptions
		bad  bool
	}{
		{"", fsOptions{root, false, "pstorage://c1", fuse.Auto}, false},
		{"allow_other", fsOptions{true, false, "pstorage://c1", fuse.Auto}, false},
		{"noallow_other,_netdev,x-systemd.automount",
			fsOptions{false, false, "pstorage://c1", fuse.Auto}, false},
		{"fsname=images", fsOptions{root, false, "images", fuse.Auto}, false},
		{"ro", fsOptions{root, true, "pstorage://c1", fuse.Auto}, false},
		{"ro,rw", fsOptions{root, false, "pstorage://c1", fuse.Auto}, false},
		{"ro,fuse-uring=on", fsOptions{root, true, "pstorage://c1", fuse.On}, false},
		{"fuse-uring=off", fsOptions{root, false, "pstorage://c1", fuse.Off}, false},
		{"fuse-uring=auto", fsOptions{root, false, "pstorage://c1", fuse.Auto}, false},
		{"fuse-uring=yes", fsOptions{}, true},
		{"fuse-uring", fsOptions{}, true},
		{"fsname=", fsOptions{}, true},
		{"fancy", fsOptions{}, true},
	}
	for _, test := range tests {
		got, err := parseOptions(strings.Split(test.list, ","), "c1")
		if (err != nil) != test.bad {
			t.Errorf("%q: error %v", test.list, err)
			continue
		}
		if test.bad && cli.Status(err) != cli.ExitUsage {
			t.Errorf("%q: status %d", test.list, cli.Status(err))
		}
		if !test.bad && got != test.want {
			t.Errorf("%q: %+v, want %+v", test.list, got, test.want)
		}
	}
}

func TestResultLine(t *testing.T) {
	if err := parseResult(formatResult(nil)); err != nil {
		t.Errorf("ok reads as %v", err)
	}
	sent := &cli.Error{What: "mount", Why: errors.New("no\nway"), Advice: "find one", Status: 78}
	got := parseResult(formatResult(sent))
	if got == nil || got.Error() != "mount: no way; find one" || cli.Status(got) != 78 {
		t.Errorf("got %v, status %d", got, cli.Status(got))
	}
	for _, line := range []string{"", "what?\n", "failed\n", "failed x y\n"} {
		if parseResult(line) == nil {
			t.Errorf("%q is taken for success", line)
		}
	}
}

func TestCheckMountpoint(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := checkMountpoint(dir); err != nil || got != dir {
		t.Errorf("a good one: %q, %v", got, err)
	}
	for path, says := range map[string]string{file: "isn't a directory",
		filepath.Join(dir, "none"): "mkdir -p"} {
		if _, err := checkMountpoint(path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v doesn't say %q", path, err, says)
		}
	}
}

// TestOutcome: a mount that went because nobody serves it any more is a failure, for who watches.
func TestOutcome(t *testing.T) {
	loop := make(chan struct{})
	if err := outcome(loop, "/mnt"); err != nil {
		t.Errorf("unmounted: %v", err)
	}
	close(loop)
	err := outcome(loop, "/mnt")
	if cli.Status(err) != cli.ExitFailed || !strings.Contains(err.Error(), "event loop") {
		t.Errorf("the loop ended: %v", err)
	}
}
