package perf

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"pstorage/perf/emulate"
)

// This file has the rows of a whole small cluster on emulated disks: 4 servers with 2 HDDs each, 3
// copies of everything. The servers' addresses are 127.0.0.1 to 127.0.0.4.

const (
	labServers = 4
	labDisks   = 2
	labDepth   = 64
)

// lab is such a cluster, its file written in full and written back, its HDDs slow.
type lab struct {
	hdds []*emulate.Disk
	raws []string // a file on each HDD, for the yardstick
}

// startLab makes it. With ssd > 0 each HDD has a journal of that size on an SSD.
func (r *engineRun) startLab(ctx context.Context, ssd int64) (*lab, error) {
	l := &lab{}
	o := ServersOptions{Binary: r.o.Binary, Home: r.home(), Wrap: r.rig.Wrap}
	rawSize := r.o.Set / 4
	for i := range labServers * labDisks {
		d, dir, err := r.disk(fmt.Sprintf("hdd%d", i), r.o.Set+r.o.Log+rawSize+(1<<30), true)
		if err != nil {
			return nil, err
		}
		raw := filepath.Join(dir, "raw")
		if err := FioLayout(ctx, raw, rawSize); err != nil {
			return nil, err
		}
		l.hdds, l.raws = append(l.hdds, d), append(l.raws, raw)
		disk := ServerDisk{Dir: filepath.Join(dir, "cs"), LogSize: r.o.Log / 4,
			IP: fmt.Sprintf("127.0.0.%d", 1+i/labDisks)}
		if ssd > 0 {
			fast, _, err := r.disk(fmt.Sprintf("ssd%d", i), ssd, false)
			if err != nil {
				return nil, err
			}
			disk.Journal, disk.LogSize = fast.Device(), 0
		}
		o.CS = append(o.CS, disk)
	}
	r.say("starting %d servers with %d disks each", labServers, labDisks)
	var err error
	if r.servers, err = StartServers(ctx, o); err != nil {
		return nil, err
	}
	err = r.openNative(ctx)
	if err == nil {
		err = r.layout(ctx, "")
	}
	for _, d := range l.hdds {
		if err == nil {
			err = r.quiet(ctx, d)
		}
	}
	return l, err
}

// limit makes the HDDs slow.
func (r *engineRun) limit(l *lab) error {
	for _, d := range l.hdds {
		if err := d.Limit(r.hdd()); err != nil {
			return err
		}
	}
	return nil
}

// allDisks is what the HDDs give together: fio on all at once, as many operations in flight in all
// as the cluster gets.
func (r *engineRun) allDisks(ctx context.Context, l *lab) (Result, error) {
	w := r.random("randread", labDepth/len(l.raws), r.o.Each)
	w.Size = r.o.Set / 4
	args := []string{"fio", "--group_reporting"}
	for _, raw := range l.raws {
		args = append(args, fioArgs(w, raw, "io_uring")...) // each begins a job
	}
	args = r.rig.Wrap(args...)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	if err != nil {
		return Result{}, fmt.Errorf("fio on %d disks: %w", len(l.raws), err)
	}
	return parseFio(out)
}

// operations is how many each HDD has done.
func (l *lab) operations() ([]uint64, error) {
	n := make([]uint64, len(l.hdds))
	for i, d := range l.hdds {
		var err error
		if n[i], err = d.Operations(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// rounds measures reads of the cluster beside the sum of its HDDs.
func (r *engineRun) rounds(ctx context.Context, l *lab, f Figure) error {
	for range r.o.Rounds {
		sum, err := r.allDisks(ctx, l)
		if err != nil {
			return err
		}
		before, err := l.operations()
		if err != nil {
			return err
		}
		ours, _, err := r.ours(ctx, r.random("randread", labDepth, r.o.Each))
		if err != nil {
			return err
		}
		after, err := l.operations()
		if err != nil {
			return err
		}
		for i := range after {
			after[i] -= before[i]
		}
		r.say("%d disks by fio: %.0f IOPS; operations of each while we read: %d", len(l.raws),
			sum.IOPS, after)
		f.Ours, f.Raw = append(f.Ours, ours.IOPS), append(f.Raw, sum.IOPS)
	}
	f.ofSameRound()
	r.add(f)
	return nil
}

// hdds: nothing is in the logs, as the chunk servers are started anew after everything was written
// back; their CRC pages are warmed while the disks are fast.
func (r *engineRun) hdds(ctx context.Context) error {
	l, err := r.startLab(ctx, 0)
	if err != nil {
		return err
	}
	if err := r.servers.StopCS(); err != nil {
		return err
	}
	if _, err := r.servers.StartCS(ctx); err != nil {
		return err
	}
	if _, _, err := r.ours(ctx, r.random("randread", labDepth, 3*time.Second)); err != nil {
		return err
	}
	if err := r.limit(l); err != nil {
		return err
	}
	return r.rounds(ctx, l, Figure{Name: "hdds_coldread_q64", Unit: "x", Goal: 0.95, AtLeast: true,
		Bar: 0.85, Note: "4 servers x 2 HDDs, cold 4K random reads, of the sum of the disks"})
}

// ssds: the journals hold everything.
func (r *engineRun) ssds(ctx context.Context) error {
	r.o.Set = min(r.o.Set, 256<<20) // three copies, on eight disks
	l, err := r.startLab(ctx, r.o.Log/2)
	if err == nil {
		err = r.limit(l)
	}
	if err != nil {
		return err
	}
	return r.rounds(ctx, l, Figure{Name: "ssds_warmread_q64", Unit: "x", Goal: 50, AtLeast: true,
		Bar: 22, Note: "the same with SSD journals, warm, of the sum of the HDDs"})
}
