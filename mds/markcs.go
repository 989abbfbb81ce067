package mds

import (
	"fmt"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// What cmdMarkCS does about a server's removal.
const (
	drainNone   uint8 = 0
	drainStart  uint8 = 1 // it is releasing from now on
	drainCancel uint8 = 2
	drainDone   uint8 = 3 // drop it if it still is releasing and is a member of nothing
)

// cmdMarkCS notes that a CS was dropped by an administrator, is to be drained, or that its disk
// failed.
type cmdMarkCS struct {
	origin
	CS      dataplane.CSID
	Dropped bool
	Failed  string
	Drain   uint8
}

func (c *cmdMarkCS) op() uint8 { return opMarkCS }

func (c *cmdMarkCS) put(e *encoder) {
	e.u32(uint32(c.CS))
	e.bool(c.Dropped)
	e.str(c.Failed)
	e.u8(c.Drain)
}

func (c *cmdMarkCS) get(d *decoder) {
	c.CS = dataplane.CSID(d.u32())
	c.Dropped = d.bool()
	c.Failed = d.str()
	if len(d.b) > 0 { // since the removal of servers there is
		c.Drain = d.u8()
	}
}

func (c *cmdMarkCS) apply(s *State, r *Result) {
	old := s.server(c.CS)
	if old == nil {
		r.fail(dataplane.NotFound, "CS %d", c.CS)
		return
	}
	n := *old
	source := fmt.Sprintf("cs %d", c.CS)
	switch {
	case c.Drain == drainNone:
	case n.Dropped:
		r.fail(dataplane.Conflict, "CS %d was removed from the cluster already", c.CS)
		return
	case c.Drain == drainStart && !n.Releasing:
		n.Releasing = true
		s.addEvent(control.Info, source, "cs-releasing", fmt.Sprintf(
			"being removed: its %d chunks are moved to other servers", s.csLoad[c.CS]))
	case c.Drain == drainCancel && n.Releasing:
		n.Releasing = false
		s.addEvent(control.Info, source, "cs-release-cancelled", fmt.Sprintf(
			"its removal was called off; it keeps %d chunks", s.csLoad[c.CS]))
	case c.Drain == drainDone && n.Releasing && s.csLoad[c.CS] == 0:
		n.Dropped, n.Fenced = true, true
		s.addEvent(control.Info, source, "cs-dropped",
			"removed from the cluster: all its chunks are on other servers")
	}
	if c.Dropped && !n.Dropped {
		n.Dropped, n.Fenced = true, true
		s.addEvent(control.Warning, source, "cs-dropped", fmt.Sprintf(
			"removed from the cluster while it was a member of %d chunks", s.csLoad[c.CS]))
	}
	if c.Failed != "" && n.Failed == "" {
		n.Failed = c.Failed[:min(len(c.Failed), maxEventText)]
		s.addEvent(control.Fault, source, "cs-failed", "disk failed: "+n.Failed)
	}
	n.Releasing = n.Releasing && !n.Dropped
	s.cs[c.CS] = &n
}
