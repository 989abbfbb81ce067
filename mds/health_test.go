package mds

import (
	"slices"
	"strings"
	"testing"

	"pstorage/dataplane/control"
)

// TestHealthOfServers: stat says so when metadata servers don't answer, or when their number makes
// little sense.
func TestHealthOfServers(t *testing.T) {
	up, down := control.MDSDoc{Voter: true}, control.MDSDoc{Voter: true, Down: true}
	joins := control.MDSDoc{}
	for _, c := range []struct {
		what   string
		mds    []control.MDSDoc
		health string
		says   string // in some reason; "": there is none
	}{
		{"one", []control.MDSDoc{up}, "healthy", ""},
		{"three", []control.MDSDoc{up, up, up}, "healthy", ""},
		{"one of three is away", []control.MDSDoc{up, down, up}, "degraded",
			"1 metadata servers don't answer"},
		{"two", []control.MDSDoc{up, up}, "healthy", "survive the loss of 0"},
		{"four", []control.MDSDoc{up, up, up, up}, "healthy", "survive the loss of 1"},
		{"six", []control.MDSDoc{up, up, up, up, up, up}, "healthy", "more than 5"},
		{"one that joins doesn't count", []control.MDSDoc{up, joins}, "healthy", ""},
	} {
		health, reasons := health(&control.StatDoc{MDS: c.mds, CS: []control.CSDoc{{}}})
		if health != c.health || c.says == "" && len(reasons) > 0 ||
			!slices.ContainsFunc(append(reasons, ""), func(r string) bool {
				return strings.Contains(r, c.says)
			}) {
			t.Errorf("%s: %s, %q", c.what, health, reasons)
		}
	}
}
