package mds

import (
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
)

// Raft looks whether its leader still lives when a timer fires that was drawn from once to twice
// the election time, and if it has heard of it lately draws another one: a follower knows of a
// death after 450 ms at best and 1350 ms at worst. Since the others grant no pre-vote before they
// know it too, the slowest of a majority counts. So followers watch the silence themselves, and
// have raft look at the right time. They differ by a part of the election time, so that few votes
// are split.

// silenceTick is how often a follower looks how long its leader has been silent.
const silenceTick = 20 * time.Millisecond

// silence is a follower's patience with its leader. It belongs to one goroutine.
type silence struct {
	drawn time.Duration // from 0 to half the election time, anew for each silence
	acted time.Time     // when raft was told to look last
}

func newSilence() silence { return silence{drawn: -1} }

// over says whether a follower that heard of its leader at last, and gives it timeout, should have
// raft look now.
func (s *silence) over(now, last time.Time, timeout time.Duration) bool {
	if last.Before(s.acted) {
		last = s.acted // raft tries again by itself; this is for what falls between
	}
	if s.drawn < 0 {
		s.drawn = rand.N(timeout / 2)
	}
	if now.Sub(last) < timeout+s.drawn {
		return false
	}
	*s = silence{drawn: -1, acted: now}
	return true
}

// watchSilence has raft look whether the leader lives, if this server follows one that is silent.
func (r *replica) watchSilence(s *silence) {
	if r.alone.Load() || r.raft.State() != raft.Follower {
		return
	}
	c := r.raft.ReloadableConfig()
	if !s.over(time.Now(), r.raft.LastContact(), c.HeartbeatTimeout) {
		return
	}
	// Raft looks at once when the times become shorter.
	was := c
	c.HeartbeatTimeout += time.Millisecond
	c.ElectionTimeout += time.Millisecond
	err := r.raft.ReloadConfig(c)
	if err == nil {
		err = r.raft.ReloadConfig(was)
	}
	if err != nil {
		r.log.Warn("raft timeouts not changed", "reason", err)
	}
}
