package chunk

import (
	"testing"

	"pstorage/uring/simloop"
)

// paceLook gives p a look in which clients' reads took lat ns (0: there were none) and copies used
// some bytes.
func (p *copyPace) paceLook(lat float64, used uint64) {
	if lat > 0 {
		p.lat, p.samples = lat, 8
	}
	p.spent = used
	p.look()
}

// Copies give way while clients' reads take much longer than without them, within a second, never
// below the floor; and get everything back when clients read nothing, or don't mind.
func TestCopyPace(t *testing.T) {
	sim := simloop.New(1)
	sh := &Shard{env: sim.NewEnv("pace"), stopping: true} // no timer: the test looks
	p := &sh.pace
	p.init(sh)
	const base, second = 200e3, 1e9 / paceEvery
	used := func() uint64 { // what the copies get, of a disk that does 100 MB/s
		if p.rate == 0 {
			return 100e6 / second
		}
		return uint64(min(p.rate, 100e6) / second)
	}
	for range 5 {
		p.paceLook(0, used())
	}
	if p.share() != 0 {
		t.Fatalf("held back to %v bytes/s with nobody reading", p.rate)
	}
	p.base, p.lat = base, base
	for range int(second) {
		p.paceLook(5*base, used())
	}
	if p.rate != paceFloor {
		t.Errorf("reads take 5 times as long: %v bytes/s after a second, want the floor", p.rate)
	}
	for range int(4 * second) {
		p.paceLook(1.1*base, used())
	}
	if p.rate != 0 {
		t.Errorf("reads are as quick as ever: %v bytes/s after four seconds", p.rate)
	}
	for range int(second) {
		p.paceLook(5*base, used())
	}
	for range int(second) {
		p.paceLook(0, used())
	}
	if p.rate != 0 {
		t.Errorf("clients have gone: %v bytes/s after a second", p.rate)
	}
	p.rate, p.toHere = 40e6, 4
	if got := p.share(); got != 10e6 {
		t.Errorf("one of four copies gets %v bytes/s", got)
	}
	if got := p.allowance(); got != uint32(10e6)/1024 {
		t.Errorf("the target allows %v KiB/s", got)
	}
}
