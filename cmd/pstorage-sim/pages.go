package main

import "pstorage/dataplane"

// In a part of the runs servers keep few CRC pages in memory, and what is used of files is spread
// over many: so pages make room for others all the time, and requests wait for room.

// crcPage is what one CRC page covers, in bytes.
const crcPage = 1024 * dataplane.BlockSize

// choosePages decides by a stream of its own. Scenes and who counts on where blocks are keep
// theirs.
func (w *world) choosePages() {
	rng := w.sim.Rand("pages")
	if !w.drawn("pages", rng.IntN(8) == 0) || w.lone != nil {
		return
	}
	w.spread([]int{4, 8, 16, 64}[rng.IntN(4)])
}

// spread has servers keep so many CRC pages, and all areas but the first lie across the border of
// what two pages cover.
func (w *world) spread(frames int) {
	w.sc.frames, w.counts.pages = frames, 1
	w.areas = []area{{0, 64 << 10}}
	for at := int64(crcPage); at < fileSize; at += crcPage {
		w.areas = append(w.areas, area{at - 16<<10, 32 << 10})
	}
}
