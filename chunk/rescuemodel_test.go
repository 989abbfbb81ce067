package chunk

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pstorage/dataplane"
)

// rescueModel is a chunk of 3 blocks and 3 members, at the level of what members hold: writes that
// reach some members, processes that end, settlings that are interrupted anywhere, exclusions, and
// blocks that turn out to be damaged at the winner. The content of a block is the number of the
// write that it is of.
type rescueModel struct {
	rng      *rand.Rand
	careless bool // members are activated before all of them have what they missed
	epoch    dataplane.Epoch
	members  []*modelReplica // of the committed configuration; the head is first
	write    int             // number of the last write
	safe     [3]int          // by block: the newest that was acknowledged or read
	flux     [3]bool         // by block: a write in flight may have been taken back since
	behind   int             // how often somebody whom an activation missed could help
	err      error
}

type modelReplica struct {
	epoch        dataplane.Epoch
	last, commit dataplane.Seq
	log          []modelWrite // since the activation
	patched      []extent
	content      [3]int
	active       bool
}

type modelWrite struct {
	seq   dataplane.Seq
	block uint32
	value int
}

func (r *modelReplica) tail() memberTail {
	t := memberTail{epoch: r.epoch, last: r.last, commit: r.commit}
	t.ext = append(t.ext, r.patched...)
	for _, w := range r.log {
		if w.seq > r.commit {
			t.ext = append(t.ext, extent{w.seq, w.block * dataplane.BlockSize, dataplane.BlockSize})
		}
	}
	return t
}

func (r *modelReplica) take(w modelWrite) {
	r.last = w.seq
	r.log = append(r.log, w)
	r.content[w.block] = w.value
}

func (r *modelReplica) patch(b uint32, value int) {
	r.content[b] = value
	r.patched = append(r.patched, extent{0, b * dataplane.BlockSize, dataplane.BlockSize})
}

func newRescueModel(seed uint64, careless bool) *rescueModel {
	m := &rescueModel{rng: rand.New(rand.NewPCG(seed, 7)), careless: careless, epoch: 1}
	for range 3 {
		m.members = append(m.members, &modelReplica{epoch: 1, active: true})
	}
	return m
}

// step does one thing and compares.
func (m *rescueModel) step() {
	switch m.rng.IntN(8) {
	case 0, 1, 2:
		m.writes()
	case 3: // a process ends; the marks that it had heard of aren't all in its log
		r := m.members[m.rng.IntN(len(m.members))]
		if r.active = false; len(r.log) > 0 {
			r.commit = min(r.commit, r.log[m.rng.IntN(len(r.log))].seq-1)
		}
	default:
		m.settle()
	}
	m.reads()
	m.check()
}

// writes has the head take a write, and others what they lack, in order.
func (m *rescueModel) writes() {
	head := m.members[0]
	if !head.active {
		return
	}
	m.write++
	head.take(modelWrite{head.last + 1, uint32(m.rng.IntN(3)), m.write})
	all := head.last
	for _, r := range m.members[1:] {
		for _, w := range head.log {
			if r.active && w.seq == r.last+1 && m.rng.IntN(4) > 0 {
				r.take(w)
			}
		}
		all = min(all, r.last)
	}
	for _, w := range head.log {
		if w.seq <= all {
			m.safe[w.block] = max(m.safe[w.block], w.value)
		}
	}
	for _, r := range m.members {
		if r.active && m.rng.IntN(2) == 0 {
			r.commit = max(r.commit, all)
		}
	}
}

// reads reads everything that any member would give.
func (m *rescueModel) reads() {
	for i, r := range m.members {
		for b := range uint32(3) {
			if !r.active || slices.ContainsFunc(r.log, func(w modelWrite) bool {
				return w.seq > r.commit && w.block == b
			}) {
				continue
			}
			if r.content[b] < m.safe[b] {
				m.fail("member %d gives %d of block %d, after %d", i, r.content[b], b, m.safe[b])
			}
			m.safe[b] = max(m.safe[b], r.content[b])
		}
	}
}

// settle does what a coordinator does, up to where it is interrupted.
func (m *rescueModel) settle() {
	stay, excludes := slices.Clone(m.members), false
	if len(stay) > 1 && m.rng.IntN(8) == 0 {
		i := m.rng.IntN(len(stay))
		stay, excludes = slices.Delete(stay, i, i+1), true
	}
	var tails []memberTail
	for _, r := range stay {
		r.active = false
		tails = append(tails, r.tail())
	}
	v := decide(true, tails)
	if v.dataLost || len(v.lost) > 0 {
		m.fail("verdict %+v", v)
	}
	steps := m.rng.IntN(20)
	for _, c := range v.copies {
		for b := c.off / dataplane.BlockSize; b < (c.off+c.length)/dataplane.BlockSize; b++ {
			if steps--; steps < 0 {
				if !m.careless {
					return
				}
			} else if !m.copy(stay, tails, v, c.to, b) {
				return
			}
		}
	}
	if excludes {
		m.epoch++
		m.members = stay
	}
	order := m.rng.Perm(len(stay))
	order = append(slices.DeleteFunc(order, func(i int) bool { return i == 0 }), 0)
	if m.careless {
		steps = m.rng.IntN(20)
	}
	for _, i := range order {
		if steps--; steps < 0 {
			return
		}
		*stay[i] = modelReplica{epoch: m.epoch, last: v.last, commit: v.last, active: true,
			content: stay[i].content}
	}
	m.flux = [3]bool{}
}

// copy gives a block of the winner to a member, or, as it is damaged, to all what another one has.
func (m *rescueModel) copy(stay []*modelReplica, tails []memberTail, v verdict, to int,
	b uint32) bool {
	list := rescuers(v.winner, tails, b*dataplane.BlockSize, false)
	if len(list) == 0 || m.rng.IntN(4) > 0 {
		stay[to].patch(b, stay[v.winner].content[b])
		return true
	}
	from := list[m.rng.IntN(len(list))]
	m.flux[b] = m.flux[b] || from.older
	for i, r := range stay {
		if i != from.member || r.last < v.last {
			r.patch(b, stay[from.member].content[b])
		}
		if m.rng.IntN(20) == 0 {
			return false
		}
	}
	return true
}

// check compares what may stand for the winner's blocks with these.
func (m *rescueModel) check() {
	var tails []memberTail
	for _, r := range m.members {
		tails = append(tails, r.tail())
	}
	v := decide(true, tails)
	if v.dataLost || len(v.lost) > 0 {
		m.fail("verdict %+v", v)
		return
	}
	w := &tails[v.winner]
	for b := range uint32(3) {
		for _, x := range rescuers(v.winner, tails, b*dataplane.BlockSize, false) {
			got, want := m.members[x.member].content[b], m.members[v.winner].content[b]
			if t := &tails[x.member]; t.epoch < w.epoch || t.last < w.commit {
				m.behind++
			}
			if got < m.safe[b] || got != want && !x.older && !m.flux[b] {
				m.fail("block %d is %d at member %d (older %v) and %d at the winner %d; %d was "+
					"acknowledged or read; %+v", b, got, x.member, x.older, want, v.winner, m.safe[b], tails)
			}
		}
	}
}

func (m *rescueModel) fail(format string, args ...any) {
	if m.err == nil {
		m.err = fmt.Errorf(format, args...)
	}
}

// TestRescuersModel: who is said to have a damaged block has it, whatever happened before; and no
// block ever goes back behind what was acknowledged or read. That isn't so, and the model finds it,
// when members are activated before all have what they missed.
func TestRescuersModel(t *testing.T) {
	behind, found := 0, 0
	for seed := range uint64(4000) {
		for _, careless := range []bool{false, true} {
			m := newRescueModel(seed, careless)
			for range 80 {
				if m.step(); m.err != nil {
					break
				}
			}
			switch {
			case careless && m.err != nil:
				found++
			case !careless && m.err != nil:
				t.Fatalf("seed %d: %v", seed, m.err)
			case !careless:
				behind += m.behind
			}
		}
	}
	if behind < 1000 || found < 100 {
		t.Errorf("%d times somebody who was left out could help; careless settlings were found in "+
			"%d of 4000 seeds", behind, found)
	}
	t.Logf("%d times somebody who was left out could help; careless: %d of 4000", behind, found)
}
