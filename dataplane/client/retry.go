package client

import "pstorage/dataplane"

// action is what the engine does about an answer that isn't OK.
type action uint8

const (
	actFail      action = iota // the op fails
	actMap                     // the map is old: fetch it, then again at once (the first time)
	actWait                    // again after a pause
	actWaitMap                 // the same, with a new map
	actOther                   // read: ask another member
	actOtherHard               // read: the same; this member's data is damaged or its disk failed
)

// actions is the one table of what is done about an answer of each kind.
var actions = [...]struct{ read, write action }{
	dataplane.OK:           {actFail, actFail}, // not looked up
	dataplane.StaleEpoch:   {actMap, actMap},
	dataplane.UnknownChunk: {actMap, actMap},
	dataplane.NotHead:      {actOther, actMap}, // read: a member that waits for the head to settle
	dataplane.NotReady:     {actOther, actWaitMap},
	dataplane.NoLease:      {actOther, actWaitMap},
	dataplane.BadCRC:       {actOtherHard, actWait}, // write: damaged on the way, or memory changed
	dataplane.Malformed:    {actFail, actFail},
	dataplane.IOError:      {actOtherHard, actWaitMap}, // write: the member will be excluded
	dataplane.NoSpace:      {actOther, actWait},
	dataplane.Denied:       {actFail, actFail},
	dataplane.OutOfBounds:  {actFail, actFail},
	dataplane.BelowMinimum: {actOther, actWaitMap},
	dataplane.Overloaded:   {actOther, actWait},
	dataplane.Closed:       {actOther, actWaitMap},
	dataplane.TimedOut:     {actOther, actWaitMap},
	dataplane.NotFound:     {actMap, actMap},
	dataplane.Exists:       {actFail, actFail},
	dataplane.NotDir:       {actFail, actFail},
	dataplane.IsDir:        {actFail, actFail},
	dataplane.NotEmpty:     {actFail, actFail},
	dataplane.Invalid:      {actFail, actFail},
	dataplane.NotLeader:    {actOther, actWaitMap},
	dataplane.Conflict:     {actOther, actWaitMap},
	dataplane.NotSupported: {actFail, actFail},
	dataplane.NameTooLong:  {actFail, actFail},
	dataplane.Unreachable:  {actOther, actWaitMap},
	dataplane.WrongCluster: {actFail, actFail},
	dataplane.Fenced:       {actFail, actFail},
	dataplane.TooLarge:     {actFail, actFail},
	dataplane.Internal:     {actOtherHard, actWaitMap},
	dataplane.NoAttribute:  {actFail, actFail},
	dataplane.LeaseHeld:    {actFail, actFail},
}

// refused acts on an answer that isn't OK.
func (e *Engine) refused(p *part, kind dataplane.Kind) {
	act := actFail
	if int(kind) < len(actions) {
		act = actions[kind].write
		if p.code == dataplane.OpRead {
			act = actions[kind].read
		}
	}
	p.why = kind
	if kind == dataplane.Fenced && p.code != dataplane.OpRead {
		f, token := p.file, p.op.token
		e.partDone(p, e.partError(p, kind, nil))
		e.fenced(f, token)
		return
	}
	switch act {
	case actFail:
		e.partDone(p, e.partError(p, kind, nil))
	case actMap:
		e.stale(p)
	case actWait:
		e.later(p)
	case actWaitMap:
		e.refresh(p)
		e.later(p)
	case actOther:
		e.otherMember(p, false)
	case actOtherHard:
		e.otherMember(p, true)
	}
}

// stale tries p again with a new map: at once the first time, then after a pause.
func (e *Engine) stale(p *part) {
	if e.leaveToTwin(p, false) {
		return // whose answer says the same, or serves
	}
	p.tried, p.hard = 0, 0
	e.refresh(p)
	if p.retries > 0 {
		e.later(p)
		return
	}
	p.retries = 1
	e.dispatch(p)
}

// otherMember sends a read to another member.
func (e *Engine) otherMember(p *part, hard bool) {
	e.stats.Failovers++
	if e.leaveToTwin(p, hard) {
		return
	}
	p.tried |= 1 << p.member
	if hard {
		p.hard |= 1 << p.member
	}
	e.dispatch(p)
}

// lost: the connection over which p was asked, or was to be, is gone. Whether a write was applied
// isn't known; it is sent again, to whoever is the head then.
func (e *Engine) lost(p *part, pr *peer) {
	p.why = dataplane.Unreachable
	if p.code == dataplane.OpRead {
		e.otherMember(p, false)
		return
	}
	pr.report(p.chunk, p.epoch)
	e.refresh(p)
	e.later(p)
}
