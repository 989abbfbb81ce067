package mds

import (
	"testing"
	"time"

	"pstorage/dataplane"
)

// TestLeaseCase goes through all combinations of what differs, against the rule in words.
func TestLeaseCase(t *testing.T) {
	short, long := leaseOut-1, leaseOut
	for _, leaderFor := range []time.Duration{0, short, long} {
		for _, silent := range []time.Duration{0, short, long, time.Hour} {
			for _, exitedFor := range []time.Duration{-1, 0, stopGrace - 1, stopGrace, exitGrace - 1,
				exitGrace} {
				for _, registering := range []bool{false, true} {
					for _, yielded := range []bool{false, true} {
						for grace, stopped := range map[time.Duration]bool{exitGrace: false, stopGrace: true} {
							f := leaseFacts{leaderFor, silent, registering, exitedFor >= 0, exitedFor, stopped,
								yielded}
							may := !registering && (yielded || exitedFor >= grace ||
								silent >= leaseOut && (exitedFor >= 0 || leaderFor >= leaseOut))
							if got := leaseCase(f); (got == leaseGone) != may {
								t.Errorf("%+v: %d", f, got)
							}
						}
					}
				}
			}
		}
	}
	if leaseOut <= dataplane.LeaseTime {
		t.Error("no margin")
	}
}

func TestLeases(t *testing.T) {
	const s = int64(time.Second)
	l := newLeases(100 * s)
	if !l.live(3, 100*s) || l.verdict(3, 101*s) != leaseNewLeader {
		t.Error("a new leader believes that all are there")
	}
	at := 100*s + int64(leaseOut)
	if l.live(3, at) || l.verdict(3, at) != leaseGone {
		t.Error("silent for a lease time since the leader began")
	}
	l.registered(3, at)
	if !l.live(3, at+s) || l.verdict(3, at+s) != leaseHeld {
		t.Error("registered")
	}
	l.exited(3, 1, false, at+s)
	if l.live(3, at+s) || l.verdict(3, at+s) != leaseGrace ||
		l.verdict(3, at+s+int64(exitGrace)) != leaseGone {
		t.Error("exited")
	}
	l.at(3).registering++
	if l.verdict(3, at+9*s) != leaseReturning {
		t.Error("registering")
	}
	l.at(3).registering--
	l.at(3).knockedNs = at + 9*s
	if l.verdict(3, at+9*s) != leaseReturning || l.verdict(3, at+9*s+int64(exitGrace)) != leaseGone {
		t.Error("a new process waits for the lease of the old one")
	}
	l.registered(3, at+9*s)
	if !l.live(3, at+9*s) || l.verdict(3, at+10*s) != leaseHeld {
		t.Error("back")
	}
	l.at(3).failed = true
	if l.live(3, at+9*s) || l.verdict(3, at+10*s) != leaseHeld {
		t.Error("failed: not live, but the lease runs on")
	}
}

// TestJudgeBeat goes through all inputs, against the rule in words.
func TestJudgeBeat(t *testing.T) {
	for bits := range 1 << 9 {
		b := func(i int) bool { return bits>>i&1 != 0 }
		f := beatFacts{b(0), b(1), b(2), b(3), b(4), b(5), b(6), b(7), b(8)}
		ok := f.known && f.samePro && !f.fenced && !f.dropped && !f.excluding && !f.registering &&
			!f.exited && !f.failed && !f.relist
		got := judgeBeat(f)
		if (got == beatOK) != ok {
			t.Errorf("%+v: %d", f, got)
		}
		if f.known && !f.dropped && !f.samePro && got != beatOther {
			t.Errorf("%+v: %d, want beatOther", f, got)
		}
	}
}
