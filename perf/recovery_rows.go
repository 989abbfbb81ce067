package perf

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/perf/emulate"
)

const (
	recoveryJournal = 128 << 20 // of each chunk server
	rawSize         = 128 << 20 // of the yardstick's file on each disk
	wholeWithin     = 5 * time.Minute
)

// halves are the limits of a disk that moves so many bytes per second, as many in as out: the
// kernel's throttle has a budget for each direction.
func (r *recoveryRun) halves() emulate.Limits {
	return emulate.Limits{ReadBytes: r.ro.Disk / 2, WriteBytes: r.ro.Disk / 2}
}

// prepare makes the cluster, fills it while the disks are fast, and slows them down.
func (r *recoveryRun) prepare(ctx context.Context) error {
	// A chunk takes a whole slot, of which only what was written lies on the sparse disk.
	slots := r.ro.Data / r.ro.Fill * 3 / int64(r.ro.CS) * 2
	size := slots*dataplane.ChunkSize + recoveryJournal + rawSize + 1<<30
	if err := r.cluster(ctx, r.ro.CS, size, recoveryJournal); err != nil {
		return err
	}
	r.say("writing %d MiB, three copies of each", r.ro.Data>>20)
	r.native.place = func(off int64) int64 {
		return off/r.ro.Fill*dataplane.ChunkSize + off%r.ro.Fill
	}
	if _, err := r.native.Layout(ctx, r.ro.Data); err != nil {
		return err
	}
	for _, dir := range r.dirs {
		if err := FioLayout(ctx, filepath.Join(dir, "raw"), rawSize); err != nil {
			return err
		}
	}
	for _, d := range r.disks {
		if err := r.quiet(ctx, d); err != nil {
			return err
		}
	}
	for _, d := range r.disks {
		if err := d.Limit(r.halves()); err != nil {
			return err
		}
	}
	return nil
}

// raw is the yardstick: how many bytes per second the disks from index first on can copy, each read
// once and written once, when all of them read and write at the same time.
func (r *recoveryRun) raw(ctx context.Context, first int) (float64, error) {
	var jobs []string
	for i, dir := range r.dirs[first:] {
		for _, rw := range []string{"randread", "randwrite"} {
			jobs = append(jobs, fmt.Sprintf("--name=%s%d", rw, i), "--rw="+rw,
				"--filename="+filepath.Join(dir, "raw"))
		}
	}
	args := []string{"fio", "--output-format=json", "--group_reporting=1", "--ioengine=io_uring",
		"--direct=1", "--thread", "--bs=64k", "--iodepth=8", "--norandommap", "--time_based",
		fmt.Sprintf("--size=%d", int64(rawSize)),
		fmt.Sprintf("--runtime=%dms", r.ro.Each.Milliseconds())}
	args = r.rig.Wrap(append(args, jobs...)...)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	if err != nil {
		return 0, fmt.Errorf("fio on all disks: %w", err)
	}
	read, write, err := parseFioSum(out)
	r.say("raw: %.0f MB/s read, %.0f MB/s written", read/1e6, write/1e6)
	return (read + write) / 2, err
}

// loss is a chunk server that is gone for good.
type loss struct {
	cs    uint32
	bytes int64 // of copies that were on it
	at    time.Time
}

// lose kills the chunk server on the first disk and says that it won't come back, as
// `rm-cs --force` does.
func (r *recoveryRun) lose(ctx context.Context) (l loss, err error) {
	doc, err := r.stat(ctx)
	if err != nil {
		return l, err
	}
	i := slices.IndexFunc(doc.CS, func(c control.CSDoc) bool {
		return strings.HasPrefix(c.Path, r.dirs[0]+"/")
	})
	if i < 0 || doc.CS[i].Chunks == 0 {
		return l, errors.New("the chunk server on the first disk has no chunks")
	}
	pid, err := r.servers.csPID(doc.CS[i].Path)
	if err != nil {
		return l, err
	}
	l = loss{cs: doc.CS[i].ID, bytes: int64(doc.CS[i].Chunks) * r.ro.Fill, at: time.Now()}
	return l, errors.Join(syscall.Kill(pid, syscall.SIGKILL),
		r.admin.Admin(ctx, control.AdminRmCS, control.RmCSArgs{CS: []uint32{l.cs}, Force: true},
			nil))
}

// copied sums what the chunk servers say they sent for copies.
func copied(doc *control.StatDoc) (sum uint64) {
	for _, c := range doc.CS {
		if c.Stats != nil {
			sum += c.Stats.CopyBytes
		}
	}
	return sum
}

// idle: nobody uses the cluster.
func (r *recoveryRun) idle(ctx context.Context) error {
	if err := r.prepare(ctx); err != nil {
		return err
	}
	raw, err := r.raw(ctx, 1)
	if err != nil {
		return err
	}
	lost, err := r.lose(ctx)
	if err != nil {
		return err
	}
	h, err := r.whole(ctx, lost.cs)
	if err != nil {
		return err
	}
	took := h.end.Sub(h.begin).Seconds()
	rate := float64(lost.bytes) / took
	r.say("%d MiB of copies in %.2f s: %.0f MB/s; begun after %.2f s", lost.bytes>>20, took, rate/1e6,
		h.begin.Sub(lost.at).Seconds())
	r.add(Figure{Name: "rate_idle_ratio", Value: rate / raw, Unit: "x", Goal: 0.85, AtLeast: true,
		Ours: []float64{rate / 1e6}, Raw: []float64{raw / 1e6},
		Note: "MB/s of lost copies made anew, from the first until all is whole; what the other " +
			"disks do raw"})
	r.add(Figure{Name: "begin_seconds", Value: h.begin.Sub(lost.at).Seconds(), Unit: "s", Goal: 3,
		Ours: []float64{h.begin.Sub(lost.at).Seconds()}, Note: "from the loss until copies begin"})
	return nil
}

// load: a client reads at random all the time.
func (r *recoveryRun) load(ctx context.Context) error {
	if err := r.prepare(ctx); err != nil {
		return err
	}
	raw, err := r.raw(ctx, 1)
	if err != nil {
		return err
	}
	w := Workload{RW: "randread", BlockSize: 4096, Depth: r.ro.Depth, Size: r.ro.Data,
		Time: wholeWithin + time.Minute}
	done := make(chan error, 1)
	go func() {
		_, err := r.native.Run(ctx, w)
		done <- err
	}()
	var before, during, after, lost float64
	err = func() (err error) {
		if _, err = r.rate(ctx, time.Second); err != nil { // checksums get into memory
			return err
		}
		if before, err = r.rate(ctx, r.ro.Each); err != nil {
			return err
		}
		ops := r.native.Ops()
		gone, err := r.lose(ctx)
		if err != nil {
			return err
		}
		h, err := r.whole(ctx, gone.cs)
		if err != nil {
			return err
		}
		during = float64(r.native.Ops()-ops) / time.Since(gone.at).Seconds()
		lost = float64(gone.bytes) / h.end.Sub(h.begin).Seconds()
		after, err = r.rate(ctx, r.ro.Each)
		return err
	}()
	r.native.Finish()
	if err = errors.Join(err, <-done); err != nil {
		return err
	}
	r.say("client: %.0f IOPS before, %.0f during, %.0f after; recovery %.0f MB/s", before, during,
		after, lost/1e6)
	r.add(Figure{Name: "client_iops_ratio", Value: during / before, Unit: "x", Goal: 0.7,
		AtLeast: true, Ours: []float64{during}, Raw: []float64{before},
		Note: "IOPS of the client during the recovery; before it"})
	r.add(Figure{Name: "rate_load_ratio", Value: lost / raw, Unit: "x", AtLeast: true,
		Ours: []float64{lost / 1e6}, Raw: []float64{raw / 1e6},
		Note: "MB/s of lost copies made anew beside that load; what the other disks do raw"})
	return nil
}

// rate is how many operations per second the client does.
func (r *recoveryRun) rate(ctx context.Context, d time.Duration) (float64, error) {
	ops, begun := r.native.Ops(), time.Now()
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(d):
	}
	n := r.native.Ops() - ops
	if n == 0 {
		return 0, errors.New("the client's reads don't get on")
	}
	return float64(n) / time.Since(begun).Seconds(), nil
}

// resync: a chunk server is away, without losing anything, while blocks all over a sparse file are
// written; then it gets back what changed.
func (r *recoveryRun) resync(ctx context.Context) error {
	// Each chunk has a slot on each server, of which only what is written lies on the sparse disk.
	if err := r.cluster(ctx, 3, r.ro.Span+8<<30, 1<<30); err != nil {
		return err
	}
	block := make([]byte, 4096)
	if err := r.native.Resize(ctx, r.ro.Span); err != nil {
		return err
	}
	err := r.touch(ctx, r.ro.Span/dataplane.ChunkSize, func(off int64) error {
		_, err := r.native.file.WriteAt(block, off)
		return err
	})
	if err != nil {
		return err
	}
	h, err := r.whole(ctx, 0)
	if err != nil {
		return err
	}
	sent := copied(h.doc)
	pids, err := r.servers.CSPIDs()
	if err != nil {
		return err
	}
	away := pids[0]
	if err := syscall.Kill(away, syscall.SIGSTOP); err != nil {
		return err
	}
	begun := time.Now()
	dirty, written, err := r.scatter(ctx)
	outage := time.Since(begun)
	if err == nil && outage < r.ro.Outage {
		time.Sleep(r.ro.Outage - outage)
		outage = time.Since(begun)
	}
	if err := errors.Join(err, syscall.Kill(away, syscall.SIGCONT)); err != nil {
		return err
	}
	r.say("%d MiB written in %d granules, away for %.1f s", written>>20, dirty, outage.Seconds())
	back := time.Now()
	if h, err = r.whole(ctx, 0); err != nil {
		return err
	}
	end := h.end
	time.Sleep(2 * dataplane.HeartbeatEvery) // the counters come with heartbeats
	doc, err := r.stat(ctx)
	if err != nil {
		return err
	}
	bytes := float64(copied(doc) - sent)
	deltas := uint64(0)
	for _, c := range doc.CS {
		deltas += c.Stats.Deltas
	}
	r.say("%.0f MiB copied in %.1f s, %d chunks by what changed", bytes/(1<<20),
		end.Sub(back).Seconds(), deltas)
	r.add(Figure{Name: "resync_bytes_ratio", Value: bytes / float64(dirty*dataplane.PartSize),
		Unit: "x", Goal: 1.2, Ours: []float64{bytes / 1e6},
		Raw: []float64{float64(dirty*dataplane.PartSize) / 1e6},
		Note: fmt.Sprintf("MB copied after an outage of %.0f s; granules written to in it",
			outage.Seconds())})
	r.add(Figure{Name: "resync_seconds", Value: end.Sub(back).Seconds(), Unit: "s",
		Goal: 600, Ours: []float64{end.Sub(back).Seconds()},
		Note: "from the return until all is whole"})
	return nil
}

// scatter writes blocks at random and returns in how many granules of 64 KiB they lie.
func (r *recoveryRun) scatter(ctx context.Context) (granules, written int64, err error) {
	seen := make([]bool, r.ro.Span/dataplane.PartSize)
	r.native.issued = func(off int64) { seen[off/dataplane.PartSize] = true }
	res, err := r.native.Run(ctx, Workload{RW: "randwrite", BlockSize: 4096, Depth: 128,
		Size: r.ro.Span, Time: 10 * time.Minute, Count: uint64(r.ro.Written / 4096)})
	r.native.issued = nil // the run has ended
	for _, s := range seen {
		if s {
			granules++
		}
	}
	return granules, int64(res.Ops) * 4096, err
}
