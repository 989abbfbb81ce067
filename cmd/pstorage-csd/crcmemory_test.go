package main

import (
	"slices"
	"testing"

	"pstorage/dataplane/cluster"
)

func TestCRCMemory(t *testing.T) {
	for text, want := range map[string]uint64{"1M": 1 << 20, "1.5G": 3 << 29, "16G": 16 << 30,
		"100000000": 100000000, "1000K": 0, "17G": 0, "0": 0, "-1": 0, "": 0, "x": 0} {
		var o csdOptions
		if err := o.crcs.Set(text); (err == nil) != (want > 0) || uint64(o.crcs.Size) != want {
			t.Errorf("%q: %d, %v", text, o.crcs.Size, err)
		}
		args := childArgs(o, place{cluster: "c", daemon: cluster.Daemon{Dir: "/cs"}})
		i := slices.Index(args, "--crc-memory")
		if (i >= 0) != (want > 0) {
			t.Errorf("%q: the child gets %v", text, args)
		}
		if i < 0 {
			continue
		}
		var child crcMemory
		if err := child.Set(args[i+1]); err != nil || uint64(child.Size) != want {
			t.Errorf("%q: the child gets %v: %v", text, args, err)
		}
	}
}
