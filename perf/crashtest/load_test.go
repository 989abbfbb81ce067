package crashtest

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pstorage/dataplane"
)

// blockSize is what one write of a load covers.
const blockSize = dataplane.BlockSize

// load writes a file of blocks at random and remembers what it wrote. Each block has generations
// 1, 2, 3... of contents, one in flight at a time.
type load struct {
	s       *system
	blocks  int
	workers int
	clock   func() int64 // of the caller; grows
	written [][]generation
	seen    []int // by block: the newest generation that was read, if it counts
	acked   atomic.Int64
	stop    atomic.Bool
}

// generation is one write of a block.
type generation struct {
	issued, acked int64 // by the clock; acked -1: no answer
}

func newLoad(s *system, blocks int, clock func() int64) *load {
	return &load{s: s, blocks: blocks, workers: 16, clock: clock,
		written: make([][]generation, blocks)}
}

// fill makes the contents of a block's generation; no two are alike anywhere.
func fill(buf []byte, block, gen int) {
	tag := uint64(block)<<32 | uint64(gen)
	binary.LittleEndian.PutUint64(buf, tag)
	for i := 8; i < len(buf); i += 8 {
		tag = tag*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(buf[i:], tag)
	}
}

// identify returns which generation of the block buf holds; 0: zeros.
func identify(buf []byte, block int) (int, error) {
	tag := binary.LittleEndian.Uint64(buf)
	gen := int(uint32(tag))
	want := make([]byte, len(buf))
	if tag == 0 {
		gen = 0
	} else {
		fill(want, block, gen)
	}
	if string(want) == string(buf) {
		return gen, nil
	}
	for i := range buf {
		if buf[i] != want[i] {
			return 0, fmt.Errorf("garbage: begins with tag %#x, differs from it at byte %d", tag, i)
		}
	}
	panic("unreachable")
}

// write writes the next generation of a block. It belongs to one worker.
func (l *load) write(buf []byte, block int) error {
	gen := len(l.written[block]) + 1
	fill(buf, block, gen)
	l.written[block] = append(l.written[block], generation{issued: l.clock(), acked: -1})
	if _, err := l.s.file.WriteAt(buf, int64(block)*blockSize); err != nil {
		return err
	}
	l.written[block][gen-1].acked = l.clock()
	l.acked.Add(1)
	return nil
}

// each runs do for every worker, which has the blocks equal to its number modulo the workers.
func (l *load) each(do func(worker int, buf []byte) error) error {
	errs := make(chan error, l.workers)
	for w := range l.workers {
		go func() { errs <- do(w, make([]byte, blockSize)) }()
	}
	var first error
	for range l.workers {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// layout writes all blocks once, in order.
func (l *load) layout() {
	l.s.t.Helper()
	must(l.s.t, l.each(func(w int, buf []byte) error {
		for block := w; block < l.blocks; block += l.workers {
			if err := l.write(buf, block); err != nil {
				return err
			}
		}
		return nil
	}))
}

// run writes at random until stop is set or time is over. Writes that end with an error end their
// worker; the first is returned.
func (l *load) run(seed uint64, d time.Duration) error {
	l.stop.Store(false)
	end := time.Now().Add(d)
	return l.each(func(w int, buf []byte) error {
		rng := generator(seed, uint64(w))
		for !l.stop.Load() && time.Now().Before(end) {
			block := rng.IntN(l.blocks/l.workers)*l.workers + w
			if err := l.write(buf, block); err != nil {
				return err
			}
		}
		return nil
	})
}

// verify reads all blocks and returns what is wrong: a block must hold a generation that was
// acknowledged until mustBy, or a later one that was issued until mayBy; with l.seen set none older
// than what was read before.
func (l *load) verify(mustBy, mayBy int64) []string {
	var mu sync.Mutex
	var wrong []string
	_ = l.each(func(w int, buf []byte) error {
		for block := w; block < l.blocks; block += l.workers {
			_, err := l.s.file.ReadAt(buf, int64(block)*blockSize)
			gen := 0
			if err == nil {
				gen, err = identify(buf, block)
			}
			low, high := 0, 0
			if l.seen != nil {
				low = l.seen[block]
			}
			for i, g := range l.written[block] {
				if g.acked >= 0 && g.acked <= mustBy {
					low = max(low, i+1)
				}
				if g.issued <= mayBy {
					high = i + 1
				}
			}
			if err == nil && (gen < low || gen > high) {
				err = fmt.Errorf("generation %d, want %d to %d", gen, low, high)
			}
			if l.seen != nil && err == nil {
				l.seen[block] = gen
			}
			if err != nil {
				mu.Lock()
				wrong = append(wrong, fmt.Sprintf("block %d: %v", block, err))
				mu.Unlock()
			}
		}
		return nil
	})
	return wrong
}

// mustHold fails the test if verify finds anything.
func (l *load) mustHold(what string, mustBy, mayBy int64) {
	l.s.t.Helper()
	if wrong := l.verify(mustBy, mayBy); len(wrong) > 0 {
		l.s.t.Fatalf("%s: %d of %d blocks are wrong:\n%s", what, len(wrong), l.blocks,
			strings.Join(wrong[:min(len(wrong), 20)], "\n"))
	}
}

// TestIdentify: what was torn, or belongs elsewhere, is garbage.
func TestIdentify(t *testing.T) {
	a, b := make([]byte, blockSize), make([]byte, blockSize)
	if gen, err := identify(a, 3); gen != 0 || err != nil {
		t.Errorf("zeros: %d, %v", gen, err)
	}
	fill(a, 3, 7)
	if gen, err := identify(a, 3); gen != 7 || err != nil {
		t.Errorf("generation 7: %d, %v", gen, err)
	}
	if _, err := identify(a, 4); err == nil {
		t.Error("another block's contents are accepted")
	}
	fill(b, 3, 8)
	copy(b[512:], a[512:])
	if _, err := identify(b, 3); err == nil {
		t.Error("a torn block is accepted")
	}
}
