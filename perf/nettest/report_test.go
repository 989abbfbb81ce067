package nettest

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pstorage/perf/history"
)

// window is the time of a fault. Times are those of now().
type window struct {
	fault              fault
	begin, mended, end int64
	copied             int64 // chunks, while the MDS leader was the same
}

// judge checks the histories of all blocks.
func judge(t *testing.T, all [][]event) {
	t.Helper()
	type register struct {
		file  uint8
		block uint32
	}
	blocks := map[register][]history.Op{}
	var wrote, read, failed, unanswered int
	for _, events := range all {
		for _, e := range events {
			switch e.Kind {
			case kindMeta:
				continue
			case kindError:
				if failed++; failed < 10 {
					t.Errorf("file %d block %d: an error reached the application after %.3f s", e.File+1,
						e.Block, float64(e.Ret-e.Inv)/1e9)
				}
				continue
			case kindWrite:
				wrote++
				if e.Ret == history.Never {
					unanswered++
				}
			case kindRead:
				read++
			}
			r := register{e.File, e.Block}
			blocks[r] = append(blocks[r], history.Op{Value: e.Value, Inv: e.Inv, Ret: e.Ret,
				Write: e.Kind == kindWrite})
		}
	}
	for r, ops := range blocks {
		if why := history.Check(ops); why != "" {
			t.Errorf("file %d block %d isn't linearizable: %s", r.file+1, r.block, why)
		}
	}
	t.Logf("%d writes (%d without an answer) and %d reads on %d blocks checked, %d errors", wrote,
		unanswered, read, len(blocks), failed)
}

// durations are what operations of one kind took, in ns.
type durations []int64

func (d durations) max() time.Duration {
	if len(d) == 0 {
		return 0
	}
	return time.Duration(slices.Max(d))
}

// p99 of d, which it sorts.
func (d durations) p99() time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return time.Duration(d[len(d)*99/100])
}

// atAllTimes adds what was not asked because an earlier operation of the same stream took so long:
// without that a stream that is stuck for seconds would count as a single slow operation.
func (d durations) atAllTimes() durations {
	if len(d) == 0 {
		return nil
	}
	slices.Sort(d)
	step := d[len(d)/2] + int64(pace)
	all := slices.Clone(d)
	for _, took := range d {
		for took -= step; took > step; took -= step {
			all = append(all, took)
		}
	}
	return all
}

// during returns what operations took that were under way in [from, to], by kind.
func during(all [][]event, from, to int64) [3]durations {
	var d [3]durations
	for _, events := range all {
		for _, e := range events {
			if e.Kind < kindError && e.Inv <= to && e.Ret >= from && e.Ret != history.Never {
				d[e.Kind] = append(d[e.Kind], e.Ret-e.Inv)
			}
		}
	}
	return d
}

// report prints what operations suffered in each fault, and whether that was within the goals. The
// goals are of an otherwise idle machine: missing one is an error only with PSTORAGE_NET_STRICT.
func report(t *testing.T, all [][]event, windows []window) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-64s %7s %7s %9s %9s %9s %9s %7s\n", "fault", "held s", "heal s", "write max",
		"read max", "read p99", "meta max", "copied")
	missed := 0
	for _, w := range windows {
		d := during(all, w.begin, w.end)
		fmt.Fprintf(&b, "%-64s %7.1f %7.1f %9s %9s %9s %9s %7d\n", w.fault.name,
			float64(w.mended-w.begin)/1e9, float64(w.end-w.mended)/1e9, ms(d[kindWrite].max()),
			ms(d[kindRead].max()), ms(d[kindRead].atAllTimes().p99()), ms(d[kindMeta].max()), w.copied)
		for _, why := range w.missed(d) {
			missed++
			fmt.Fprintf(&b, "  goal missed: %s\n", why)
		}
	}
	t.Log(b.String())
	if missed > 0 && os.Getenv("PSTORAGE_NET_STRICT") != "" {
		t.Errorf("%d goals missed", missed)
	}
}

// missed names the goals that a fault missed.
func (w *window) missed(d [3]durations) []string {
	var all []string
	check := func(name string, got, want time.Duration) {
		if want > 0 && cmp.Compare(got, want) > 0 {
			all = append(all, fmt.Sprintf("%s %s, wanted %s", name, ms(got), ms(want)))
		}
	}
	check("longest write", d[kindWrite].max(), w.fault.goals.write)
	check("p99 of reads", d[kindRead].atAllTimes().p99(), w.fault.goals.readP99)
	check("longest question to the metadata servers", d[kindMeta].max(), w.fault.goals.meta)
	if w.fault.goals.noCopy && w.copied != 0 {
		all = append(all, fmt.Sprintf("%d chunks were copied, wanted none", w.copied))
	}
	return all
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }
