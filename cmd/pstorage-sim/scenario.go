package main

import (
	"fmt"
	"math/rand/v2"
)

// scenario is everything about a run that isn't decided on its way.
type scenario struct {
	servers, clients  int
	replicas, minimum uint8
	victims           int // servers that may be away for longer than a lease, and so be excluded
	rot               bool
	logSize           int64
	align             int
	depth             int   // operations of a client at the same time
	room              int   // parts of them that a client has under way at one server; 0: enough
	think             int64 // mean time between a client's operations, ns
	reads, zeros      int   // percent
	sizes             []int // largest sizes of operations, bytes
	mortal            int   // clients that crash
	length            int64 // of the time with faults, ns
	every             int64 // mean time between faults, ns
	driftPPM          int64
	partialFirst      bool  // begins with a partial partition
	away              bool  // a victim is away for long enough to be excluded, and comes back
	leases            bool  // clients take write leases
	ghost             bool  // a head is excluded while what it sent is held back
	memory            bool  // files have write-ack=memory
	flushes           int   // one of so many writes is followed by a flush
	moves             int64 // mean time between moves of replicas, ns; 0: none
	bypass            int   // from so many bytes on writes go around the log; negative: none
	frames            int   // CRC pages that a server keeps in memory; 0: enough
	buffers           int   // MiB of buffers that a server has
	weights           [faultKinds]int
}

func newScenario(rng *rand.Rand) scenario {
	s := scenario{servers: 3 + rng.IntN(3), clients: 2 + rng.IntN(2), replicas: 3, minimum: 2,
		flushes: 16, buffers: manyBuffers}
	switch rng.IntN(6) {
	case 0:
		s.minimum = 1
	case 1:
		s.replicas, s.minimum = 2, 1
	}
	s.victims = rng.IntN(int(s.replicas-s.minimum) + 1)
	// With a minimum of one the metadata servers may leave a chunk to the rotten server alone: one
	// member is away, and another one, that nobody can reach, gives its lease up.
	s.rot = s.replicas == 3 && s.victims <= 1 && rng.IntN(3) == 0 && s.minimum > 1
	s.logSize = []int64{6 << 20, 10 << 20, 32 << 20}[rng.IntN(3)]
	s.align = []int{512, 4096}[rng.IntN(2)]
	s.depth = []int{1, 2, 4, 8}[rng.IntN(4)]
	s.reads = []int{20, 50, 80}[rng.IntN(3)]
	s.zeros = []int{0, 5, 20}[rng.IntN(3)]
	s.sizes = [][]int{{4096}, {512, 4096, 12 << 10}, {4096, 32 << 10}, {4096, 64 << 10, 256 << 10},
		{3000, 4096, 32 << 10, 256 << 10}}[rng.IntN(5)]
	if rng.IntN(3) == 0 {
		s.mortal = 1 + rng.IntN(s.clients)
	}
	s.length = 2*sec + rng.Int64N(5*sec)
	ops := []int64{150, 500, 1500}[rng.IntN(3)]
	s.think = s.length * int64(s.clients) * int64(s.depth+1) / 2 / ops
	s.every = []int64{60 * ms, 200 * ms, 600 * ms}[rng.IntN(3)]
	s.driftPPM = []int64{0, 1000, 40_000}[rng.IntN(3)]
	s.partialFirst = s.victims > 0 && rng.IntN(4) == 0
	if s.partialFirst {
		s.length += 3 * sec
	}
	// A few kinds of faults per run, so that each comes up by itself and with others.
	for i := range s.weights {
		if rng.IntN(3) == 0 {
			s.weights[i] = 1 + rng.IntN(4)
		}
	}
	s.copies(rng)
	s.bypass = []int{-1, 4096, 4096, 64 << 10}[rng.IntN(4)]
	if s.bypass > 0 && rng.IntN(2) == 0 {
		s.zeros = 20 // makes blocks fresh again
	}
	return s
}

// chooseSingle has the files of some runs have one copy, which is moved and drained, by a stream of
// its own.
func (w *world) chooseSingle() {
	rng, s := w.sim.Rand("singles"), &w.sc
	if rng.IntN(12) > 0 {
		return
	}
	s.replicas, s.minimum, s.victims = 1, 1, 0
	s.rot, s.away, s.partialFirst = false, false, false
	s.moves = []int64{100 * ms, 400 * ms, sec}[rng.IntN(3)]
}

// copies makes sure that most runs have members that return and replicas that move.
func (s *scenario) copies(rng *rand.Rand) {
	if s.victims == 0 && s.replicas > s.minimum && rng.IntN(4) > 0 {
		s.victims = 1
	}
	if s.away = s.victims > 0 && rng.IntN(4) > 0; s.away {
		s.length += 4 * sec
	}
	if rng.IntN(3) > 0 {
		s.moves = []int64{100 * ms, 400 * ms, sec}[rng.IntN(3)]
	}
}

// drift is the speed of one clock: together two clocks stay within the margin of leases.
func (s *scenario) drift(rng *rand.Rand) int64 {
	if s.driftPPM == 0 {
		return 0
	}
	return rng.Int64N(2*s.driftPPM+1) - s.driftPPM
}

func (s scenario) String() string {
	t := fmt.Sprintf("%d cs, %d clients (%d crash), replicas %d:%d, %d victims, depth %d, faults",
		s.servers, s.clients, s.mortal, s.replicas, s.minimum, s.victims, s.depth)
	if s.memory {
		t = "write-ack=memory, " + t
	}
	if s.frames > 0 {
		t = fmt.Sprintf("%d CRC pages, %s", s.frames, t)
	}
	if s.buffers < manyBuffers {
		t = fmt.Sprintf("%d MiB of buffers, %s", s.buffers, t)
	}
	for k, w := range s.weights {
		if w > 0 {
			t += " " + faultNames[k]
		}
	}
	return t
}
