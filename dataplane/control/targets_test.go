package control

import (
	"slices"
	"testing"
)

// TestTargets: servers that have proved themselves are tried first, the one just lost last.
func TestTargets(t *testing.T) {
	c := &Client{proven: map[string]bool{"b": true, "d": true}}
	c.o.Addrs = func() []string { return []string{"a", "b", "c", "d"} }
	for lost, want := range map[string][]string{"": {"b", "d", "a", "c"}, "b": {"d", "a", "c", "b"},
		"c": {"b", "d", "a", "c"}, "gone": {"b", "d", "a", "c"}} {
		var got []string
		for _, target := range c.targets(lost) {
			got = append(got, target.addr)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q was lost: %v, want %v", lost, got, want)
		}
	}
}
