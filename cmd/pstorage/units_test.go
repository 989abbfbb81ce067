package main

import (
	"strings"
	"testing"

	"pstorage/dataplane/control"
)

func TestQuoted(t *testing.T) {
	for text, want := range map[string]string{"/a/b-c_1.2": "/a/b-c_1.2", "": "''", "a b": "'a b'",
		"it's": `'it'\''s'`, "$HOME": "'$HOME'"} {
		if got := quoted(text); got != want {
			t.Errorf("quoted(%q) = %s, want %s", text, got, want)
		}
	}
}

func TestMountedOn(t *testing.T) {
	const info = "22 1 254:0 / / rw - ext4 /dev/vda rw\n" +
		`50 22 0:40 / /mnt/my\040disk rw - fuse.pstorage pstorage://dev rw` + "\n"
	for path, want := range map[string]bool{"/": true, "/mnt/my disk": true, "/mnt": false,
		"/mnt/my": false} {
		if got := mountedOn(info, path); got != want {
			t.Errorf("mountedOn(%q) = %v", path, got)
		}
	}
}

func TestClean(t *testing.T) {
	for text, want := range map[string]string{"": "-", "ok": "ok", "a\x1b[2J\nb": "a?[2J?b",
		"tab\there": "tab?here", "\u009bx": "?x", "ü": "ü"} {
		if got := clean(text); got != want {
			t.Errorf("clean(%q) = %q, want %q", text, got, want)
		}
	}
}

// A long reason stands below the table, or the columns behind it would be off the screen.
func TestStatReasons(t *testing.T) {
	why := strings.Repeat("why ", 100)
	text := string(render(func(t *table) {
		showCS(t, []control.CSDoc{{ID: 1, Status: control.CSActive, Addr: "a:1"},
			{ID: 2, Status: control.CSRefused, Failed: why, Reason: why, Addr: "a:2"}})
	}))
	head, below, ok := strings.Cut(text, "cs 2 refused: "+why)
	if !ok || below != "\n" || strings.Contains(head, "why") || !strings.Contains(head, "refused") {
		t.Errorf("stat:\n%s", text)
	}
	text = string(render(func(t *table) {
		showServices(t, control.ServicesDoc{Refused: []control.RefusedDoc{{Host: "h", Path: "/cs",
			Reason: why}}})
	}))
	if !strings.Contains(text, "/cs        "+why+"\n") {
		t.Errorf("list-services:\n%s", text)
	}
}

// TestMDSRoles: stat says which metadata servers don't answer.
func TestMDSRoles(t *testing.T) {
	text := string(render(func(t *table) {
		showMDS(t, []control.MDSDoc{{ID: "1", Addr: "a:1", Leader: true, Voter: true},
			{ID: "2", Addr: "a:2", Voter: true}, {ID: "3", Addr: "a:3", Voter: true, Down: true},
			{ID: "4", Addr: "a:4"}})
	}))
	for i, role := range []string{"ROLE", "leader", "follower", "down", "joining"} {
		if line := strings.Split(text, "\n")[i]; !strings.HasSuffix(line, " "+role) {
			t.Errorf("%q isn't %s", line, role)
		}
	}
}

func TestChunkLine(t *testing.T) {
	line := func(c control.ChunksDoc) string { return chunkLine(control.StatDoc{Chunks: c}) }
	if got := line(control.ChunksDoc{Total: 3, Healthy: 3}); got != "3, 3 healthy" {
		t.Errorf("got %q", got)
	}
	got := line(control.ChunksDoc{Total: 3, Healthy: 1, Degraded: 2, Urgent: 1})
	if got != "3, 1 healthy, 2 degraded, 1 urgent (one copy left)" {
		t.Errorf("got %q", got)
	}
}

func TestAgo(t *testing.T) {
	for ms, want := range map[int64]string{0: "now", 999: "now", 1500: "1s ago", 59999: "59s ago",
		61000: "1m0s ago", 3600000: "1h0m0s ago"} {
		if got := ago(ms); got != want {
			t.Errorf("ago(%d) = %q, want %q", ms, got, want)
		}
	}
}
