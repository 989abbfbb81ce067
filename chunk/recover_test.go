package chunk

import (
	"fmt"
	"testing"

	"pstorage/dataplane"
)

// The chunk of this test has 3 blocks; a write touches one of them. A history is a list of blocks
// written, in the order of seqs. The content of a block is the last seq that wrote it, by the
// history that wrote it: what a copy must reproduce.

type simReplica struct {
	tail    memberTail
	content [3]int
}

// replicaOf is a member that has the first n writes of the history, with the given commit mark.
func replicaOf(epoch dataplane.Epoch, history []int, n, commit int) simReplica {
	r := simReplica{tail: memberTail{epoch: epoch, last: dataplane.Seq(n),
		commit: dataplane.Seq(commit)}}
	for i := range n {
		r.content[history[i]] = int(epoch)*100 + i + 1
		if i >= commit {
			r.tail.ext = append(r.tail.ext, extent{dataplane.Seq(i + 1), uint32(history[i]) * 4096, 4096})
		}
	}
	return r
}

// settleSim does what a coordinator does with a verdict.
func settleSim(v verdict, members []simReplica) {
	for _, c := range v.copies {
		for b := range uint32(3) {
			if b*4096 >= c.off && b*4096 < c.off+c.length {
				members[c.to].content[b] = members[v.winner].content[b]
			}
		}
	}
}

// All histories of up to 3 writes on 3 blocks, all lengths of three members, all commit marks that
// the rules allow: afterwards all members are equal, and nothing acknowledged is missing.
func TestDecideSameEpoch(t *testing.T) {
	cases := 0
	for n := range 4 {
		for code := range 27 {
			h := []int{code % 3, code / 3 % 3, code / 9}[:n]
			for lens := range (n + 1) * (n + 1) * (n + 1) {
				l := []int{lens % (n + 1), lens / (n + 1) % (n + 1), lens / (n + 1) / (n + 1)}
				committed := min(l[0], l[1], l[2])
				for marks := range (committed + 1) * (committed + 1) {
					c := []int{marks % (committed + 1), marks / (committed + 1), committed}
					var ms []simReplica
					var tails []memberTail
					for i := range 3 {
						m := replicaOf(1, h, l[i], c[i])
						ms = append(ms, m)
						tails = append(tails, m.tail)
					}
					v := decide(true, tails)
					cases++
					name := fmt.Sprintf("history %v lengths %v marks %v", h, l, c)
					if v.dataLost || len(v.lost) > 0 {
						t.Fatalf("%s: %+v", name, v)
					}
					if int(v.last) != max(l[0], l[1], l[2]) {
						t.Fatalf("%s: starts at %d", name, v.last)
					}
					settleSim(v, ms)
					want := replicaOf(1, h, int(v.last), 0).content
					for i := range ms {
						if ms[i].content != want {
							t.Fatalf("%s: member %d has %v, not %v: %+v", name, i, ms[i].content, want, v)
						}
					}
				}
			}
		}
	}
	if cases < 1000 {
		t.Fatalf("%d cases", cases)
	}
}

// A member of an older epoch may have writes that the newer epoch's history doesn't: they go.
func TestDecideOlderEpoch(t *testing.T) {
	for a := range 27 {
		for b := range 27 {
			old := []int{a % 3, a / 3 % 3, a / 9}
			cur := []int{b % 3, b / 3 % 3, b / 9}
			cur[0] = old[0] // committed in the old epoch
			for n := 1; n <= 3; n++ {
				m := replicaOf(1, old, 3, 1)
				w := replicaOf(1, old, 1, 1)
				w.tail.epoch = 2
				for i := 1; i < n; i++ {
					w.content[cur[i]] = 200 + i + 1
					w.tail.last = dataplane.Seq(i + 1)
					w.tail.ext = append(w.tail.ext, extent{dataplane.Seq(i + 1), uint32(cur[i]) * 4096, 4096})
				}
				ms := []simReplica{m, w}
				v := decide(true, []memberTail{m.tail, w.tail})
				if v.winner != 1 || len(v.lost) > 0 {
					t.Fatalf("verdict %+v", v)
				}
				settleSim(v, ms)
				if ms[0].content != ms[1].content {
					t.Fatalf("old %v cur %v n %d: %v and %v", old, cur, n, ms[0].content, ms[1].content)
				}
			}
		}
	}
}

func TestDecideLoss(t *testing.T) {
	has := func(last, commit int) memberTail {
		return memberTail{epoch: 1, last: dataplane.Seq(last), commit: dataplane.Seq(commit)}
	}
	none := memberTail{unknown: true}
	for _, c := range []struct {
		name    string
		created bool
		tails   []memberTail
		lost    string
		gone    bool
		winner  int
	}{
		{"new chunk", false, []memberTail{none, none, none}, "[]", false, 0},
		{"created, all gone", true, []memberTail{none, none}, "[]", true, 0},
		{"created, one gone", true, []memberTail{has(3, 3), none, has(3, 2)}, "[1]", false, 0},
		{"created but never written, one gone", true, []memberTail{none, has(0, 0)}, "[0]", false, 1},
		{"committed, though not marked created", false, []memberTail{has(2, 1), none}, "[1]", false, 0},
		{"half made", false, []memberTail{none, has(0, 0), none}, "[]", false, 1},
		{"uncommitted only", false, []memberTail{has(2, 0), none}, "[]", false, 0},
		{"rolled back", true, []memberTail{has(9, 8), has(5, 5)}, "[1]", false, 0},
		{"behind, not rolled back", true, []memberTail{has(9, 5), has(5, 5)}, "[]", false, 0},
		{"patched, then interrupted", true, []memberTail{has(9, 9), {epoch: 1, last: 5, commit: 5,
			ext: []extent{{0, 0, 4096}}}}, "[]", false, 0},
		{"newest epoch wins", true, []memberTail{has(9, 2), {epoch: 2, last: 4, commit: 4}},
			"[]", false, 1},
	} {
		v := decide(c.created, c.tails)
		lost := fmt.Sprint(append([]int{}, v.lost...))
		if v.dataLost != c.gone || lost != c.lost || !c.gone && v.winner != c.winner {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
}

// What was touched outside of the order of seqs is copied, whoever has it.
func TestDecidePatched(t *testing.T) {
	p := extent{0, 4096, 4096}
	for who := range 2 {
		tails := []memberTail{{epoch: 1, last: 3, commit: 3}, {epoch: 1, last: 3, commit: 3}}
		tails[who].ext = []extent{p}
		v := decide(true, tails)
		if len(v.copies) != 1 || v.copies[0] != (tailCopy{1, 4096, 4096}) {
			t.Errorf("patched at %d: %+v", who, v)
		}
	}
}

func TestAppendCopiesMerges(t *testing.T) {
	got := appendCopies(nil, 1, []extent{{3, 8192, 4096}, {1, 0, 4096}, {2, 4096, 4096},
		{9, 65536, 8192}, {8, 69632, 4096}})
	want := "[{1 0 12288} {1 65536 8192}]"
	if fmt.Sprint(got) != want {
		t.Fatalf("%v, want %s", got, want)
	}
}

func TestBegun(t *testing.T) {
	old, now, gone := memberTail{epoch: 2, last: 7}, memberTail{epoch: 3, last: 7},
		memberTail{unknown: true}
	for _, c := range []struct {
		name  string
		tails []memberTail
		want  bool
	}{
		{"all are in the epoch", []memberTail{now, now, now}, true},
		{"one lost it", []memberTail{now, now, gone}, true},
		{"the head wasn't activated, the new member lost it", []memberTail{old, now, gone}, false},
		{"a copy that isn't finished says nothing", []memberTail{now, {}, now}, true},
	} {
		if got := begun(c.tails, 3); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestRescuers(t *testing.T) {
	const block = 8192
	at := func(seq dataplane.Seq, off uint32) extent { return extent{seq, off, 4096} }
	tail := func(last, commit dataplane.Seq, ext ...extent) memberTail {
		return memberTail{epoch: 3, last: last, commit: commit, ext: ext}
	}
	// The winner is the first one, with seq 9 and mark 7.
	onBlock, elsewhere := tail(9, 7, at(8, 0), at(9, block)), tail(9, 7, at(8, 0), at(9, 0))
	for _, c := range []struct {
		name   string
		tails  []memberTail
		memory bool
		want   string
	}{
		{"as long", []memberTail{onBlock, tail(9, 7)}, false, "[{1 false}]"},
		{"behind, the tail is elsewhere", []memberTail{elsewhere, tail(7, 7)}, false, "[{1 false}]"},
		{"behind, the tail is on it", []memberTail{onBlock, tail(8, 7)}, false, "[{1 true}]"},
		{"behind, has what the tail did to it", []memberTail{tail(9, 7, at(8, block), at(9, 0)),
			tail(8, 7)}, false, "[{1 false}]"},
		{"behind, the winner was patched there", []memberTail{tail(9, 7, at(0, block)), tail(8, 7)},
			false, "[{1 true}]"},
		{"shown from memory", []memberTail{onBlock, tail(8, 7)}, true, "[]"},
		{"memory, the tail is elsewhere", []memberTail{elsewhere, tail(8, 7)}, true, "[{1 false}]"},
		{"below the mark", []memberTail{elsewhere, tail(6, 6, at(0, 0))}, false, "[]"},
		{"no chunk, a copy, an older epoch", []memberTail{elsewhere, {unknown: true}, {},
			{epoch: 2, last: 9, commit: 9}}, false, "[]"},
		{"an older epoch, nothing since", []memberTail{tail(9, 9), {epoch: 2, last: 9, commit: 9},
			tail(9, 9)}, false, "[{2 false} {1 false}]"},
		{"an older epoch, its tail is on it", []memberTail{tail(9, 9), {epoch: 2, last: 9, commit: 7,
			ext: []extent{at(8, block), at(9, 0)}}}, false, "[{1 false}]"},
		{"an older epoch, patched there", []memberTail{tail(9, 9), {epoch: 2, last: 6, commit: 6,
			ext: []extent{at(0, block)}}}, false, "[{1 false}]"},
		{"an older epoch, it lost data", []memberTail{tail(9, 9), {epoch: 2, last: 8, commit: 8}},
			false, "[]"},
		{"an older epoch, both were patched there", []memberTail{tail(9, 9, at(0, block)),
			{epoch: 2, last: 9, commit: 9, ext: []extent{at(0, block)}}}, false, "[{1 false}]"},
		{"an older epoch, and something was written since", []memberTail{tail(9, 8, at(9, 0)),
			{epoch: 2, last: 8, commit: 8}}, false, "[]"},
		{"the activation missed it", []memberTail{tail(9, 9), tail(8, 7, at(0, block))}, false,
			"[{1 false}]"},
		{"the activation missed it, memory", []memberTail{tail(9, 9), tail(8, 7, at(0, block))}, true,
			"[{1 false}]"},
		{"a later epoch", []memberTail{tail(9, 9), {epoch: 4, last: 9, commit: 9}}, false, "[]"},
		{"best first", []memberTail{onBlock, tail(8, 7), tail(9, 8), tail(7, 7)}, false,
			"[{2 false} {1 true} {3 true}]"},
	} {
		if got := fmt.Sprint(rescuers(0, c.tails, block, c.memory)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
