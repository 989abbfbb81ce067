package chunk

import (
	"bytes"
	"fmt"
	"testing"
)

// Seals aren't durable: a process that starts serves and takes nothing before it was sealed and
// activated anew, so its end keeps what it promised with a seal. Here the power of the site is cut
// at every moment between the first seal of a settling and its end, and the servers come back in
// any order: with a head that came back, and with one that is excluded meanwhile.
func TestPowerCutWhileSettling(t *testing.T) {
	step, most := 40*us, 60
	if testing.Short() {
		step = 280 * us
	}
	for _, excluded := range []bool{false, true} {
		cuts := 0
		for k := range most {
			at := int64(k) * step
			if at > int64(most)*40*us {
				break
			}
			if !t.Run(fmt.Sprintf("excluded=%v after %d us", excluded, at/us), func(t *testing.T) {
				if cutWhileSettling(t, uint64(k), at, excluded) {
					cuts++
				}
			}) {
				return
			}
		}
		if cuts == 0 {
			t.Errorf("excluded=%v: no settling was interrupted", excluded)
		}
	}
}

const us = int64(1000)

// cutWhileSettling says whether the power was cut before the settling had ended.
func cutWhileSettling(t *testing.T, seed uint64, after int64, excluded bool) (within bool) {
	w := newWorld(t, 500+seed, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	const writes = 6
	for i := range uint32(writes) {
		w.mustWrite(chunkA, i*8192, pattern(uint64(i+1), 4096))
	}
	// Writes that not everybody has: the members' tails differ.
	w.net.Cut(w.nodes[0].ip, w.nodes[2].ip, true)
	flying := make([]bool, 4)
	for i := range flying {
		w.write(chunkA, uint32(i)*8192+4096, pattern(uint64(100+i), 4096), &flying[i])
	}
	w.run(2 * ms)
	coordinator := w.nodes[0]
	if excluded {
		coordinator = w.nodes[1]
		w.nodes[0].kill()
		w.md.report(1)
	}
	w.net.Reset(w.nodes[0].ip, w.nodes[2].ip)
	w.net.Cut(w.nodes[0].ip, w.nodes[2].ip, false)
	r := coordinator.sh.chunks[chunkA]
	w.must(func() bool { return r.state == sealed }, 10*sec, "seal")
	w.run(after)
	within = r.state == sealed
	for _, nd := range w.nodes {
		nd.kill()
	}
	order := [][3]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {0, 2, 1}, {1, 0, 2}, {2, 0, 1}}[seed%6]
	for _, i := range order {
		w.nodes[i].restart(true)
		w.run(int64(seed%3) * 30 * ms)
	}
	w.mustWrite(chunkA, writes*8192, pattern(50, 4096))
	w.must(func() bool { return !bytes.Contains([]byte(fmt.Sprint(flying)), []byte("false")) },
		20*sec, "the writes in flight")
	var members []int
	for _, m := range w.md.chunks[chunkA].Members {
		members = append(members, int(m.CS-1))
	}
	w.equal(chunkA, 65536, members...)
	for i := range writes {
		for m := range members {
			if got := w.read(chunkA, uint32(i)*8192, 4096, m); !bytes.Equal(got,
				pattern(uint64(i+1), 4096)) {
				t.Errorf("member %d: acknowledged write %d reads as %x", m, i, got[:8])
			}
		}
	}
	for i := range flying {
		if got := w.read(chunkA, uint32(i)*8192+4096, 4096, 0); !bytes.Equal(got,
			pattern(uint64(100+i), 4096)) {
			t.Errorf("write %d that was in flight reads as %x", i, got[:8])
		}
	}
	if n := w.md.event("replica-lost") + w.md.event("chunk-lost"); n > 0 {
		t.Errorf("%d members are said to have lost data", n)
	}
	return within
}
