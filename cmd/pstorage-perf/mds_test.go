package main

import (
	"io"
	"testing"

	"pstorage/mds"
)

// TestMeasureMDS runs the parts of mds that need no processes of their own, on a small state.
func TestMeasureMDS(t *testing.T) {
	o := mdsOptions{chunks: 2000, files: 20, servers: 5, dir: t.TempDir(), err: io.Discard,
		gcSeconds: 0.2}
	figures := mds.Figures{}
	for _, what := range []string{"state", "empty", "gc", "snapshot", "loss"} {
		f, err := o.runChild(t.Context(), what, 0)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for name, v := range f {
			figures[name] = v
		}
	}
	for _, name := range []string{"restart_s", "snapshot_s", "snapshot_pause_p999_ms",
		"snapshot_apply_p999_ms", "cs_loss_scan_ms", "rss_bytes", "gc_pauses", "gc_pause_p999_ms",
		"snapshot_gc_pause_max_ms"} {
		if figures[name] <= 0 {
			t.Errorf("%s is %v", name, figures[name])
		}
	}
}
