package mds

import (
	"context"
	"errors"
	"strings"
	"testing"

	"pstorage/dataplane/control"
)

// TestOtherTerm: a command of another term than raft's doesn't get into the log, even if whoever
// decided it was held up so long that nothing else notices; those of this term, and of none, do.
func TestOtherTerm(t *testing.T) {
	c := newTestCluster(t, 1)
	s := c.nodes[0]
	r := s.r
	lead := func(after uint64) uint64 { // the one that refused an entry steps down soon after
		t.Helper()
		var l *leader
		eventually(t, "a leader", func() bool {
			l = s.lead.Load()
			return l != nil && l.term > after && l.valid(t.Context()) == nil
		})
		return l.term
	}
	propose := func(ctx context.Context, code string) error {
		_, err := r.propose(ctx, &cmdAddEvent{Code: code})
		return err
	}
	term := lead(0)
	for _, off := range []int{-1, 1} {
		other := term + uint64(off)
		err := propose(withTerm(t.Context(), other), "wrong")
		if moved := new(*notLeader); !errors.As(err, moved) {
			t.Fatalf("term %d at a leader of %d: %v", other, term, err)
		}
		term = lead(term)
	}
	if err := propose(withTerm(t.Context(), term), "right"); err != nil {
		t.Error(err)
	}
	if err := propose(t.Context(), "right"); err != nil {
		t.Error(err)
	}
	r.fsm.mu.RLock()
	defer r.fsm.mu.RUnlock()
	right := 0
	r.fsm.s.events.each(func(e *control.Event) bool {
		if e.Code == "right" {
			right++
		} else if strings.HasPrefix(e.Code, "wrong") {
			t.Error("a command of another term was applied")
		}
		return true
	})
	if right != 2 {
		t.Errorf("%d of 2 commands were applied", right)
	}
}

// TestEntryOfOneTerm: commands of different terms don't share an entry; the older ones are refused.
func TestEntryOfOneTerm(t *testing.T) {
	r := &replica{sim: &Sim{}} // whose notLeader asks no raft
	for name, c := range map[string]struct {
		terms []uint64
		left  []int // the commands in the entry
		term  uint64
	}{
		"none":      {[]uint64{0, 0}, []int{0, 1}, 0},
		"one":       {[]uint64{0, 3, 0, 3}, []int{0, 1, 2, 3}, 3},
		"an older":  {[]uint64{4, 3, 4, 0}, []int{0, 2, 3}, 4},
		"a newer":   {[]uint64{3, 0, 3, 4, 0, 3}, []int{3, 4}, 4},
		"two newer": {[]uint64{3, 4, 5}, []int{2}, 5},
	} {
		var b entryBatch
		var all []*proposal
		for _, term := range c.terms {
			p := &proposal{ctx: t.Context(), cmd: &cmdAddEvent{}, term: term,
				done: make(chan struct{})}
			all = append(all, p)
			b.add(r, p)
		}
		if b.term != c.term || len(b.proposals) != len(c.left) {
			t.Errorf("%s: %d commands of term %d", name, len(b.proposals), b.term)
			continue
		}
		entry := beginEntry(nil)
		for i, k := range c.left {
			if b.proposals[i] != all[k] {
				t.Errorf("%s: command %d isn't the %dth", name, k, i)
			}
			entry = appendCommand(entry, all[k].cmd)
		}
		if string(entry) != string(b.entry) {
			t.Errorf("%s: the entry has something else", name)
		}
		refused := 0
		for _, p := range all {
			select {
			case <-p.done:
				refused++
				if p.err == nil {
					t.Errorf("%s: refused without an error", name)
				}
			default:
			}
		}
		if refused != len(all)-len(b.proposals) {
			t.Errorf("%s: %d of %d refused", name, refused, len(all)-len(b.proposals))
		}
	}
}
