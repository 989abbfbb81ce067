package main

// In a part of the runs servers have few buffers, so that requests wait for them, and those that
// were cut for requests of one size are needed for others.

// manyBuffers, in MiB, are never used up.
const manyBuffers = 64

// chooseBuffers decides by a stream of its own. 3 MiB are the least that a server starts with.
func (w *world) chooseBuffers() {
	rng := w.sim.Rand("buffers")
	if w.drawn("buffers", rng.IntN(8) == 0) {
		w.sc.buffers, w.counts.buffers = 3+rng.IntN(3), 1
	}
}
