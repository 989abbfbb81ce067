package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestWaiting: stat --wait and scrub start --wait end when they should, and say what they wait for.
func TestWaiting(t *testing.T) {
	n := newNode(t)
	n.makeCluster(2)
	csd := n.start("pstorage-csd")
	csd.waitFor("cs 1 ready on")
	csd.waitFor("cs 2 ready on")
	out := n.ok("", "stat", "--wait", "--timeout", "30s")
	if !strings.HasPrefix(out, "Cluster c1: healthy") || strings.ContainsAny(out, "\r\x1b") {
		t.Errorf("stat --wait: %q", out)
	}
	fits(t, "stat", n.ok("", "stat", "--wait", "-o", "json"))
	text := n.ok("", "scrub", "start", "--wait", "-o", "json")
	fits(t, "scrub-status", text)
	var doc scrubStatusDoc
	if err := json.Unmarshal([]byte(text), &doc); err != nil || len(doc.CS) != 2 {
		t.Fatalf("%v: %s", err, text)
	}
	for _, s := range doc.CS {
		if s.FinishedNs == 0 || s.State != "idle" {
			t.Errorf("scrub start --wait ended before cs %d did: %+v", s.ID, s)
		}
	}
	csd.stop()
	eventually(t, "the stop is seen", func() bool { return n.stat().Health != "healthy" })
	n.says(1, "2 chunk servers don't answer", "stat", "--wait", "--timeout", "300ms")
}
