package ssdcache

import (
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/uring"
)

// The log over the real ring and a real file.

// memStore takes everything and keeps nothing.
type memStore struct{ loop *uring.Loop }

func (s memStore) later(f func()) { s.loop.Arm(&uring.Timer{Fire: f}, 0) }

func (s memStore) WriteBack(w *WriteBack)      { s.later(func() { w.Done(w) }) }
func (s memStore) Checkpoint(done func(error)) { s.later(func() { done(nil) }) }

// onLoop runs f on a new loop, until it calls stop; then everything is gone, as if killed.
func onLoop(t testing.TB, f func(l *uring.Loop, stop func())) {
	t.Helper()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	l, err := uring.NewLoop(uring.LoopOptions{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	l.Post(func() { f(l, l.Stop) })
	if err := l.Run(); err != nil {
		t.Fatal(err)
	}
	_ = l.Close() // complains about the buffers of a log that wasn't closed
}

func formatFile(t testing.TB, path string, size int64) {
	t.Helper()
	onLoop(t, func(l *uring.Loop, stop func()) {
		d, err := l.OpenDisk(path, uring.DiskOptions{Create: true, Size: size})
		if err != nil {
			t.Error(err)
			stop()
			return
		}
		Format(FormatOptions{Disk: d, Env: l, Pool: l.Pool(), Owner: 1}, func(err error) {
			if err != nil {
				t.Error(err)
			}
			stop()
		})
	})
}

func openFile(t testing.TB, l *uring.Loop, path string, o Options, record func(*Record),
	then func(*Log)) {
	d, err := l.OpenDisk(path, uring.DiskOptions{})
	if err != nil {
		t.Error(err)
		l.Stop()
		return
	}
	o.Disk, o.Env, o.Pool, o.Owner, o.MaxSlots = d, l, l.Pool(), 1, 64
	o.Backing = memStore{l}
	o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	Open(o, record, func(log *Log, err error) {
		if err != nil {
			t.Error(err)
			l.Stop()
			return
		}
		then(log)
	})
}

// load keeps depth appends of 4 KiB in flight until n are acknowledged.
type load struct {
	log         *Log
	as          []Append
	sent, acked int
	n           int
	err         error
	done        func()
	rnd         uint32
	wait        []*Append // for room
}

func startLoad(log *Log, buf *uring.Buf, depth, n int, done func()) *load {
	ld := &load{log: log, as: make([]Append, depth), n: n, done: done}
	data := buf.Bytes()[:blockSize]
	crcs := make([]byte, 4)
	for i := range ld.as {
		a := &ld.as[i]
		a.Record = Record{Kind: Data, Chunk: 1, Epoch: 1, Length: blockSize}
		a.Data, a.CRCs, a.Done = data, crcs, ld.next
		fillTag(data, 1)
		dataplane.PutCRCs(crcs, 0, data)
	}
	log.o.OnRoom = func() {
		w := ld.wait
		ld.wait = ld.wait[:0]
		for _, a := range w {
			ld.send(a)
		}
	}
	for i := range ld.as {
		ld.send(&ld.as[i])
	}
	return ld
}

func (ld *load) send(a *Append) {
	if ld.sent == ld.n {
		return
	}
	if !ld.log.Room() {
		ld.wait = append(ld.wait, a)
		return
	}
	ld.sent++
	ld.rnd = ld.rnd*1664525 + 1013904223
	a.Slot, a.Offset = ld.rnd>>28, ld.rnd>>14&(1<<14-1)*blockSize
	a.Seq = dataplane.Seq(ld.sent)
	ld.log.Append(a)
}

func (ld *load) next(a *Append) {
	if a.Err != nil {
		ld.err = a.Err
	}
	if ld.acked++; ld.acked == ld.n || ld.err != nil {
		ld.done()
		return
	}
	ld.send(a)
}

// TestRealRing: what was acknowledged over the kernel is there when the loop is gone in the middle
// of more of it.
func TestRealRing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	formatFile(t, path, 32<<20)
	want := 0
	for round := range 3 {
		onLoop(t, func(l *uring.Loop, stop func()) {
			last := 0
			openFile(t, l, path, Options{DestageAt: 0.2}, func(r *Record) { last = int(r.Seq) },
				func(log *Log) {
					if last < want {
						t.Errorf("round %d: replayed up to %d of %d", round, last, want)
					}
					ld := startLoad(log, l.Pool().Get(blockSize), 32, 1<<30, stop)
					ld.sent += last
					l.Arm(&uring.Timer{Fire: func() {
						want = last + ld.acked
						if ld.acked == 0 || ld.err != nil {
							t.Errorf("round %d: %d acknowledged, %v", round, ld.acked, ld.err)
						}
						stop()
					}}, int64(200*time.Millisecond))
				})
		})
	}
}

func cpuTime() time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		panic(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkRingAppend is durable 4 KiB appends over the ring to a file.
func BenchmarkRingAppend(b *testing.B) {
	for _, depth := range []int{1, 32, 128} {
		b.Run(fmt.Sprintf("depth%d", depth), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "log")
			formatFile(b, path, 1<<30)
			b.ReportAllocs()
			onLoop(b, func(l *uring.Loop, stop func()) {
				openFile(b, l, path, Options{}, nil, func(log *Log) {
					b.ResetTimer()
					cpu := cpuTime()
					startLoad(log, l.Pool().Get(blockSize), depth, b.N, func() {
						b.StopTimer()
						if log.Err() != nil {
							b.Error(log.Err())
						}
						b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
						b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
						b.ReportMetric(float64(log.stats.Appends)/float64(log.stats.Batches),
							"appends/batch")
						stop()
					})
				})
			})
		})
	}
}

// BenchmarkReplay opens a log that is 0.85 full: of 4 GiB in large batches, and of 1 GiB in batches
// of a single block.
func BenchmarkReplay(b *testing.B) {
	b.Run("4GiB", func(b *testing.B) { benchReplay(b, 4<<30, 128) })
	b.Run("1GiB-single", func(b *testing.B) { benchReplay(b, 1<<30, 1) })
}

func benchReplay(b *testing.B, size int64, depth int) {
	path := filepath.Join(b.TempDir(), "log")
	formatFile(b, path, size)
	onLoop(b, func(l *uring.Loop, stop func()) {
		openFile(b, l, path, Options{DestageAt: 0.9}, nil, func(log *Log) {
			ld := startLoad(log, l.Pool().Get(blockSize), depth, 1<<30, stop)
			var full func()
			full = func() {
				if log.fill() > 0.85 {
					ld.n = ld.acked + 1
				}
				l.Arm(&uring.Timer{Fire: full}, 1e6)
			}
			full()
		})
	})
	cpu := cpuTime()
	for b.Loop() {
		records := 0
		onLoop(b, func(l *uring.Loop, stop func()) {
			openFile(b, l, path, Options{DestageAt: 0.9}, func(*Record) { records++ },
				func(*Log) { stop() })
		})
		b.ReportMetric(float64(records), "records")
	}
	b.ReportMetric((cpuTime()-cpu).Seconds()/float64(b.N), "cpu-s/op")
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/op")
}
