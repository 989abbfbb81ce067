package ssdcache

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// modelIndex drives an index and a map with the same calls.
type modelIndex struct {
	t     testing.TB
	x     *index
	pos   map[blockKey]Pos
	owner map[Pos]blockKey
}

func newModelIndex(t testing.TB, positions uint32, width uint, seed uint64) *modelIndex {
	x, err := newIndexOf(positions, width, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.close(); err != nil {
			t.Error(err)
		}
	})
	return &modelIndex{t: t, x: x, pos: map[blockKey]Pos{}, owner: map[Pos]blockKey{}}
}

// put does nothing if p is in use.
func (m *modelIndex) put(key blockKey, p Pos) {
	if _, used := m.owner[p]; used {
		return
	}
	m.x.put(key, p, uint32(p)*3)
	if old, ok := m.pos[key]; ok {
		delete(m.owner, old)
	}
	m.pos[key], m.owner[p] = p, key
}

func (m *modelIndex) drop(key blockKey) {
	m.x.drop(key)
	if p, ok := m.pos[key]; ok {
		delete(m.owner, p)
	}
	delete(m.pos, key)
}

func (m *modelIndex) evict(p Pos) {
	m.x.evict(p)
	if key, ok := m.owner[p]; ok {
		delete(m.pos, key)
	}
	delete(m.owner, p)
}

func (m *modelIndex) checkKey(key blockKey) {
	m.t.Helper()
	want, has := m.pos[key]
	if got, ok := m.x.get(key); ok != has || ok && (got != want || m.x.crc(got) != uint32(got)*3) {
		m.t.Fatalf("key %#x: %d %v, want %d %v", key, got, ok, want, has)
	}
}

// checkAll compares everything, the table's own counts included.
func (m *modelIndex) checkAll() {
	m.t.Helper()
	x := m.x
	if x.n != len(m.pos) || len(m.pos) != len(m.owner) {
		m.t.Fatalf("%d entries, want %d", x.n, len(m.pos))
	}
	away := make([]int, len(x.table))
	for p := range Pos(len(x.place)) {
		key, ok := x.current(p)
		if want, has := m.owner[p]; ok != has || ok && key != want {
			m.t.Fatalf("position %d: %#x %v, want %#x %v", p, key, ok, want, has)
		}
		if !ok {
			continue
		}
		m.checkKey(key)
		h := x.hash(key)
		at, _ := x.find(h, key)
		if at != x.locate(h, p) {
			m.t.Fatalf("position %d is at %v and %v", p, at, x.locate(h, p))
		}
		if at.bucket != x.first(h) {
			away[x.first(h)]++
		}
	}
	entries := len(x.stash)
	for i := range x.table {
		b := &x.table[i]
		entries += x.used(b)
		if n := int(b[elsewhere]); n != away[i] && n != 255 {
			m.t.Fatalf("bucket %d: %d keys are elsewhere, it says %d", i, away[i], n)
		}
	}
	if entries != x.n {
		m.t.Fatalf("%d entries in the table for %d keys", entries, x.n)
	}
}

// used counts the entries of a bucket.
func (s *shape) used(b *bucket) int {
	n := 0
	for i := range s.slots() {
		m := int(s.width) - 1 - i/2 + i%2*int(s.width)
		if s.load(b, m) != 0 {
			n++
		}
	}
	return n
}

// step does one random call, with keys below limit.
func (m *modelIndex) step(rng *rand.Rand, key blockKey) {
	p := 1 + Pos(rng.IntN(len(m.x.place)-1))
	m.call(rng.IntN(6), key, p)
}

// call drops a key, evicts a place, or, for all other numbers, puts the key there.
func (m *modelIndex) call(what int, key blockKey, p Pos) {
	switch what {
	case 0:
		m.drop(key)
	case 1:
		m.evict(p)
	default:
		m.put(key, p)
	}
	m.checkKey(key)
}

// fill puts keys that next gives on all positions that are free.
func (m *modelIndex) fill(next func() blockKey) {
	for p := Pos(1); p < Pos(len(m.x.place)); p++ {
		for {
			if _, used := m.owner[p]; used {
				break
			}
			key := next()
			if _, has := m.pos[key]; !has {
				m.put(key, p)
			}
		}
	}
}

var widths = []uint{narrow, wide}

// TestIndexAgainstMap: random calls, with keys that are crowded, so that most are written again, or
// hardly ever the same.
func TestIndexAgainstMap(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := newModelIndex(t, []uint32{600, 17, 3000}[seed%3], widths[seed%2], rng.Uint64())
		keys := []uint32{50, 300, 5000, 1 << 18}[seed/2%4]
		for range 20000 {
			m.step(rng, rng.Uint32N(keys)*77%(MaxSlots<<14))
		}
		m.checkAll()
	}
}

// TestIndexFull: all positions in use, and blocks come and go: by turns as the log writes around,
// at random places, and as overwrites of what is there.
func TestIndexFull(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 2))
			positions := []uint32{300, 20000, 1000}[seed/2]
			m := newModelIndex(t, positions, widths[seed%2], rng.Uint64())
			next := func() blockKey { return rng.Uint32N(MaxSlots << 14) }
			m.fill(next)
			m.checkAll()
			for i := range 200_000 {
				p := 1 + Pos(i)%Pos(positions-1)
				if i/int(positions)%2 == 1 {
					p = 1 + Pos(rng.Uint32N(positions-1))
				}
				key := next()
				if old, ok := m.owner[1+Pos(rng.Uint32N(positions-1))]; ok && i%3 == 0 {
					key = old
				}
				m.evict(p)
				m.put(key, p)
				m.checkKey(key)
				if len(m.owner) < int(positions)*9/10 {
					m.fill(next)
				}
			}
			m.fill(next)
			m.checkAll()
			if len(m.x.stash) > 0 {
				t.Errorf("%d keys in the stash", len(m.x.stash))
			}
		})
	}
}

// TestIndexSameBuckets: who knows the hash fills two buckets, and the counts of keys that are
// elsewhere, and the stash. Everything is still found, and when others go, what is in the stash
// comes back to the table.
func TestIndexSameBuckets(t *testing.T) {
	for _, width := range widths {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			const positions = 700
			rng := rand.New(rand.NewPCG(3, 3))
			m := newModelIndex(t, positions, width, 12345)
			var keys []blockKey
			for key := blockKey(0); len(keys) < 2*positions; key++ {
				if h := m.x.hash(key); m.x.first(h) < 2 && m.x.second(h) < 2 {
					keys = append(keys, key)
				}
			}
			for i, key := range keys[:positions-1] {
				m.put(key, Pos(i+1))
			}
			m.checkAll()
			if want := positions - 1 - 2*m.x.slots(); len(m.x.stash) != want {
				t.Fatalf("%d keys in the stash, want %d", len(m.x.stash), want)
			}
			for range 20000 {
				m.step(rng, keys[rng.IntN(len(keys))])
			}
			m.checkAll()
			for p := Pos(1); m.x.n > 2*m.x.slots(); p++ {
				m.evict(p)
			}
			m.checkAll()
			if len(m.x.stash) != 0 {
				t.Fatalf("%d of %d keys in the stash", len(m.x.stash), m.x.n)
			}
		})
	}
}

// TestIndexBudget: at most 8 bytes of index per block of the log (table and owner) up to 256 GiB,
// 13 with checksum and state.
func TestIndexBudget(t *testing.T) {
	for _, c := range []struct {
		gib        uint64
		index, all float64
	}{{1, 8, 13}, {4, 8, 13}, {64, 8, 13}, {256, 8, 13}, {257, 8.75, 13.75}, {4096, 8.75, 13.75}} {
		x, err := newIndex(uint32(c.gib<<18), 1)
		if err != nil {
			t.Fatal(err)
		}
		n := float64(len(x.place))
		table := float64(64*len(x.table)) / n
		t.Logf("log of %d GiB: table %.3f bytes per block, with owner %.3f, in all %.3f", c.gib,
			table, table+4, float64(len(x.mem))/n)
		if table+4 > c.index {
			t.Errorf("log of %d GiB: table and owner take %.3f bytes per block", c.gib, table+4)
		}
		if all := float64(len(x.mem)) / n; all > c.all {
			t.Errorf("log of %d GiB: %.3f bytes per block", c.gib, all)
		}
		if err := x.close(); err != nil {
			t.Fatal(err)
		}
	}
	if x, err := newIndex(1<<30+1, 1); err == nil {
		t.Errorf("an index for a log of more than 4 TiB: %d bytes", len(x.mem))
	}
}

// TestIndexSteady: an index that stays full, while blocks come and go for laps of the log, doesn't
// get worse: few keys are away from their first bucket, and none is in the stash.
func TestIndexSteady(t *testing.T) {
	const positions = 1 << 16
	for _, width := range widths {
		x := newModelIndex(t, positions, width, 99).x
		rng := rand.New(rand.NewPCG(7, 7))
		next := blockKey(0)
		for range 8 {
			for p := Pos(1); p < positions; p++ {
				x.evict(p)
				x.put(next, p, 0)
				next += 1 + rng.Uint32N(3)
			}
		}
		away, full := 0, 0
		for p := Pos(1); p < positions; p++ {
			key, _ := x.current(p)
			if h := x.hash(key); x.locate(h, p).bucket != x.first(h) {
				away++
			}
		}
		for i := range x.table {
			if x.used(&x.table[i]) == x.slots() {
				full++
			}
		}
		t.Logf("entries of %d bits: %.3f of the keys are away from their first bucket, %.3f of the "+
			"buckets full", width, float64(away)/positions, float64(full)/float64(len(x.table)))
		if away > positions/3 || full > len(x.table)/2 || len(x.stash) > 0 {
			t.Errorf("%d of %d keys away, %d of %d buckets full, %d keys in the stash", away,
				positions, full, len(x.table), len(x.stash))
		}
	}
}

// FuzzIndex: calls as the input has them, on an index of a few buckets.
func FuzzIndex(f *testing.F) {
	f.Add(uint64(1), false, []byte("0123456789abcdefghijklmnopqrstuvwxyz"))
	f.Add(uint64(2), true, []byte{0, 1, 2, 64, 1, 2, 128, 1, 2, 192, 1, 2})
	f.Fuzz(func(t *testing.T, seed uint64, large bool, calls []byte) {
		m := newModelIndex(t, 60, widths[0], seed)
		if large {
			m = newModelIndex(t, 60, widths[1], seed)
		}
		for ; len(calls) >= 3; calls = calls[3:] {
			key, p := blockKey(calls[1])<<6|blockKey(calls[0]&63), 1+Pos(calls[2])%59
			m.call(int(calls[0]>>6), key, p)
		}
		m.checkAll()
	})
}
