package mds

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// Gray failures: a chunk server whose heartbeats go on but which is slow, or whose writes hang.
//
//   - It is ill when a latency of it (of its log, of its reads, or of its answers as other servers
//     measure them) has been far above the median of the others for a while: nothing new is placed
//     on it, and clients read elsewhere. That ends when it has been like the others for longer.
//   - It is excluded when writes don't get on at all because of it: it is asked to give its lease
//     up (yield), or doesn't get another one. Then the chunks that are written go on without it,
//     and later it registers again and is given back what it missed.
//
// All of it is evidence by comparison, so it takes three servers, and only a share of them is being
// excluded by it at a time, and only if no chunk has too few members then.
const (
	illFloor   = 20 * time.Millisecond // no latency below it is a fault
	illFactor  = 5                     // times the median of the others
	illWell    = 2                     // ill until it is below this many times the median
	illAfter   = 10 * time.Second      // of being slow
	wellAfter  = 30 * time.Second      // of being like the others
	illOthers  = 2                     // servers to compare with, at least
	freshFor   = 5 * time.Second       // measurements are that old at most
	stallAfter = time.Second           // writes that don't get on for so long
	stallOther = 250 * time.Millisecond
	stallFresh = 3 * dataplane.HeartbeatEvery
	yieldFirst = 5 * time.Second // before it may come back, doubled each time up to yieldMost
	yieldMost  = 5 * time.Minute
	yieldCalm  = 10 * time.Minute // without trouble: the times begin anew
	stallShare = 5                // one of so many servers is being excluded at a time, or one
	awayFor    = 5 * time.Second  // after the lease of an excluded server: what is written goes on
)

// illFacts is what illCase decides on.
type illFacts struct {
	ill           bool
	value, median time.Duration
	others        int           // servers that the median is of
	held          time.Duration // how long the opposite of ill has been so
}

// contrary says whether a measurement speaks against the state that a server is in.
func (f illFacts) contrary() bool {
	if f.ill {
		return f.others < illOthers || f.value < max(illFloor/2, illWell*f.median)
	}
	return f.others >= illOthers && f.value > max(illFloor, illFactor*f.median)
}

// illCase decides whether a server is ill.
func illCase(f illFacts) bool {
	return f.ill != (f.contrary() && illTurns(f.ill, f.held))
}

// illTurns says whether measurements that speak against a state have done so for long enough.
func illTurns(ill bool, held time.Duration) bool {
	return ill && held >= wellAfter || !ill && held >= illAfter
}

// stallFacts is what stallCase knows of one server.
type stallFacts struct {
	live  bool
	own   time.Duration // its log or store hasn't got on for so long
	waits int           // servers that it waits for in vain
	by    int           // servers that wait for it in vain
}

// stallCase says which server keeps writes from getting on, an index, or -1 if that can't be told.
// A disk that hangs while the others' don't is its own evidence. Otherwise it is who most others
// wait for in vain, but one that itself waits for several is more likely the one that can't be
// reached. going is how many are being excluded already: they aren't in the list.
func stallCase(list []stallFacts, going int) int {
	live, own, hang := 0, -1, 0
	for i, f := range list {
		if !f.live {
			continue
		}
		live++
		if f.own >= stallAfter && (own < 0 || f.own > list[own].own) {
			own = i
		}
		if f.own >= stallOther {
			hang++
		}
	}
	most := max(1, (live+going)/stallShare)
	if live <= illOthers || going >= most {
		return -1
	}
	if own >= 0 {
		if hang+going > most {
			return -1 // too many hang: it isn't their disks alone
		}
		return own
	}
	best, score := -1, 0
	for i, f := range list {
		if !f.live {
			continue
		}
		n := f.by
		if f.waits > 1 {
			n = max(n, f.waits)
		}
		// Of two it is rather the one that waits for nobody: the end of a chain.
		if n > score || best >= 0 && n == score && f.waits < list[best].waits {
			best, score = i, n
		}
	}
	return best
}

// metric is one of the latencies that are compared.
type metric uint8

const (
	metricLog metric = iota
	metricRead
	metricPeers
	metrics
)

var metricNames = [metrics]string{"its log takes", "its reads take", "its answers take"}

// sample is a smoothed latency.
type sample struct {
	value time.Duration
	atNs  int64
}

func (s *sample) add(ns, nowNs int64) {
	if ns <= 0 {
		return
	}
	if nowNs-s.atNs > int64(freshFor) {
		s.value = time.Duration(ns)
	} else {
		s.value += (time.Duration(ns) - s.value) / 4
	}
	s.atNs = nowNs
}

// serverHealth is what is known of one server.
type serverHealth struct {
	latency [metrics]sample
	waits   map[dataplane.CSID]*sample // of others for this one: by who waits
	own     time.Duration              // its log's or store's stall, as last reported
	stuckOn []dataplane.CSID           // servers it waits for in vain, as last reported
	beatNs  int64                      // of that report

	ill      bool
	contrary int64 // since when the measurements speak against ill; 0: they don't
	why      string

	asked    bool  // to give its lease up
	askedNs  int64 // when it was asked last
	awayNs   int64 // since when its lease is over, after that; 0: it may have it
	stalledN int64 // when it last stalled, while it is excluded
	times    int   // how often lately
	note     string
}

// peerHealth is the leader's judgement of its chunk servers. It is pure. Not safe for concurrent
// use.
type peerHealth struct {
	cs     []*serverHealth // by id; nil: nothing known
	stepNs int64
	sorted [metrics][]time.Duration // of the servers that are there, in one step
}

func newHealth() *peerHealth { return &peerHealth{} }

func (h *peerHealth) at(cs dataplane.CSID) *serverHealth {
	for int(cs) >= len(h.cs) {
		h.cs = append(h.cs, nil)
	}
	if h.cs[cs] == nil {
		h.cs[cs] = &serverHealth{waits: make(map[dataplane.CSID]*sample)}
	}
	return h.cs[cs]
}

func (h *peerHealth) peek(cs dataplane.CSID) *serverHealth {
	if int(cs) >= len(h.cs) {
		return nil
	}
	return h.cs[cs]
}

// isIll says whether a server is to be avoided.
func (h *peerHealth) isIll(cs dataplane.CSID) bool {
	s := h.peek(cs)
	return s != nil && (s.ill || s.asked)
}

// heard says whether a server's heartbeats come, whatever they are answered.
func (h *peerHealth) heard(cs dataplane.CSID, nowNs int64) bool {
	s := h.peek(cs)
	return s != nil && nowNs-s.beatNs < int64(stallFresh)
}

// reason says why, or what else is notable; "" if nothing is.
func (h *peerHealth) reason(cs dataplane.CSID) string {
	s := h.peek(cs)
	switch {
	case s == nil:
		return ""
	case s.asked:
		return s.note
	case s.ill:
		return s.why
	}
	return s.note
}

// maxWaits bounds the list in one heartbeat that is looked at.
const maxWaits = 1024

// report takes the measurements of a heartbeat.
func (h *peerHealth) report(cs dataplane.CSID, req *control.HeartbeatReq, nowNs int64) {
	s := h.at(cs)
	s.beatNs = nowNs
	s.latency[metricLog].add(req.Stats.LogWaitNs, nowNs)
	s.latency[metricRead].add(req.Stats.ReadWaitNs, nowNs)
	s.own = time.Duration(max(0, req.StallNs))
	s.stuckOn = s.stuckOn[:0]
	for _, w := range req.Waits[:min(len(req.Waits), maxWaits)] {
		other := h.peek(w.CS) // who never sent a heartbeat isn't judged
		if other == nil || w.CS == cs {
			continue
		}
		e := other.waits[cs]
		if e == nil {
			e = &sample{}
			other.waits[cs] = e
		}
		e.add(w.WaitNs, nowNs)
		if w.StallNs >= int64(stallAfter) {
			s.stuckOn = append(s.stuckOn, w.CS)
		}
	}
	if s.own >= stallOther || len(s.stuckOn) > 0 {
		s.stalledN = nowNs
	}
}

// step judges all servers anew.
func (h *peerHealth) step(nowNs int64, live func(dataplane.CSID) bool) {
	for id, s := range h.cs {
		if s == nil {
			continue
		}
		var all []time.Duration
		for by, w := range s.waits {
			if nowNs-w.atNs > int64(freshFor) || !live(by) {
				delete(s.waits, by)
				continue
			}
			all = append(all, w.value)
		}
		if s.asked && s.awayNs == 0 && !live(dataplane.CSID(id)) {
			s.awayNs = nowNs
		}
		if len(all) > 0 && live(dataplane.CSID(id)) {
			s.latency[metricPeers] = sample{medianOf(all), nowNs}
		}
	}
	h.sortLatencies(nowNs, live)
	for id, s := range h.cs {
		if s != nil && live(dataplane.CSID(id)) {
			h.judge(s, nowNs)
		}
	}
}

// judge applies illCase to one server: one bad latency makes it ill, all must be good to end it.
func (h *peerHealth) judge(s *serverHealth, nowNs int64) {
	contrary, worst := s.ill, 0.0
	for m := range metrics {
		g := illFacts{ill: s.ill}
		if own := &s.latency[m]; own.fresh(nowNs) {
			g.value = own.value
		}
		g.median, g.others = h.median(m, s, nowNs)
		switch {
		case s.ill:
			contrary = contrary && g.contrary()
		case g.contrary():
			contrary = true
		}
		if bad := float64(g.value) / float64(max(illFloor/2, g.median)); bad > worst && g.others > 0 {
			worst = bad
			if !s.ill && contrary || s.ill && !g.contrary() {
				s.why = fmt.Sprintf("%s %v, those of the %d others %v: nothing new is placed on it and "+
					"clients read elsewhere", metricNames[m], g.value.Round(100*time.Microsecond), g.others,
					g.median.Round(100*time.Microsecond))
			}
		}
	}
	switch {
	case !contrary:
		s.contrary = 0
		return
	case s.contrary == 0:
		s.contrary = nowNs
	}
	if illTurns(s.ill, time.Duration(nowNs-s.contrary)) {
		s.ill, s.contrary = !s.ill, 0
	}
}

// sortLatencies sorts what is known of the servers that are there, once for all medians of a step.
func (h *peerHealth) sortLatencies(nowNs int64, live func(dataplane.CSID) bool) {
	for m := range h.sorted {
		h.sorted[m] = h.sorted[m][:0]
	}
	for id, s := range h.cs {
		if s == nil || !live(dataplane.CSID(id)) {
			continue
		}
		for m := range h.sorted {
			if s.latency[m].fresh(nowNs) {
				h.sorted[m] = append(h.sorted[m], s.latency[m].value)
			}
		}
	}
	for m := range h.sorted {
		slices.Sort(h.sorted[m])
	}
}

// fresh says whether the sample is there and not too old.
func (s *sample) fresh(nowNs int64) bool {
	return s.atNs != 0 && nowNs-s.atNs <= int64(freshFor)
}

// median returns the median of a latency of all servers that are there but one, which is there,
// and how many those are.
func (h *peerHealth) median(m metric, but *serverHealth, nowNs int64) (time.Duration, int) {
	all := h.sorted[m]
	if own := &but.latency[m]; own.fresh(nowNs) {
		skip, _ := slices.BinarySearch(all, own.value)
		if len(all) == 1 {
			return 0, 0
		}
		k := (len(all) - 2) / 2
		if k >= skip {
			k++
		}
		return all[k], len(all) - 1
	}
	if len(all) == 0 {
		return 0, 0
	}
	return all[(len(all)-1)/2], len(all)
}

func medianOf(all []time.Duration) time.Duration {
	slices.SortFunc(all, cmp.Compare[time.Duration])
	return all[(len(all)-1)/2]
}

// ask notes that a server is asked for its lease.
func (s *serverHealth) ask(nowNs int64) {
	s.asked, s.askedNs, s.stalledN, s.awayNs = true, nowNs, nowNs, 0
}

// going says whether a server is being excluded: until some time after its lease has ended. One
// whose disk hangs for ever is like one that is off then, and no reason to bear with another one
// that hangs.
func (s *serverHealth) going(nowNs int64) bool {
	return s.asked && (s.awayNs == 0 || nowNs-s.awayNs < int64(awayFor))
}

// suspect applies stallCase; 0: nobody.
func (h *peerHealth) suspect(nowNs int64, live func(dataplane.CSID) bool) dataplane.CSID {
	going := 0
	list := make([]stallFacts, len(h.cs))
	for id, s := range h.cs {
		switch {
		case s == nil:
			continue
		case s.going(nowNs):
			going++
			continue
		case s.asked || !live(dataplane.CSID(id)) || nowNs-s.beatNs > int64(stallFresh):
			continue
		}
		list[id].live, list[id].own = true, s.own
	}
	// Who waits for a link in the middle of a chain waits for what comes behind it. If that is silent
	// its lease runs out by itself, and with another one excluded there would be two away.
	silent := func(cs dataplane.CSID) bool { return !list[cs].live }
	for id, s := range h.cs {
		if !list[id].live {
			continue
		}
		for _, on := range s.stuckOn {
			if !list[on].live {
				continue
			}
			list[id].waits++
			if !slices.ContainsFunc(h.cs[on].stuckOn, silent) {
				list[on].by++
			}
		}
	}
	return dataplane.CSID(max(0, stallCase(list, going)))
}

// probation is how long an excluded server stays away at least.
func (s *serverHealth) probation() time.Duration {
	return min(yieldFirst<<min(max(s.times-1, 0), 10), yieldMost)
}

// mayReturn says whether an excluded server may register again.
func (s *serverHealth) mayReturn(nowNs int64) bool {
	return s.asked && nowNs-s.askedNs >= int64(s.probation()) &&
		nowNs-s.stalledN >= int64(2*dataplane.HeartbeatEvery)
}
