package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeSystem makes a tree like that of the kernel. Values in files end with a new line, there.
func fakeSystem(t *testing.T, files map[string]string, links map[string]string) system {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range links {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(root, to), path); err != nil {
			t.Fatal(err)
		}
	}
	return system{filepath.Join(root, "sys"), filepath.Join(root, "mountinfo")}
}

func TestFlushDoubts(t *testing.T) {
	const (
		sda = "sys/devices/pci/ata1/block/sda/"
		sdb = "sys/devices/pci/ata2/block/sdb/"
		nvm = "sys/devices/pci/nvme/nvme0/nvme0n1/"
		vda = "sys/devices/virtio0/block/vda/"
		dm0 = "sys/devices/virtual/block/dm-0/"
		zrm = "sys/devices/virtual/block/zram0/"
	)
	s := fakeSystem(t, map[string]string{
		sda + "queue/rotational": "1", sda + "queue/write_cache": "write back",
		sda + "device/vendor": "ATA", sda + "device/scsi_disk/0:0:0:0/cache_type": "write back",
		sda + "sda1/partition":   "1",
		sdb + "queue/rotational": "1", sdb + "queue/write_cache": "write through",
		sdb + "device/scsi_disk/1:0:0:0/cache_type": "write back",
		nvm + "queue/rotational":                    "0", nvm + "queue/write_cache": "write back",
		vda + "queue/rotational": "1", vda + "queue/write_cache": "write back",
		zrm + "queue/rotational": "0", dm0 + "queue/rotational": "1",
		"mountinfo": `25 1 8:1 / /disk1 rw,noatime shared:1 - ext4 /dev/sda1 rw
26 1 8:2 / /disk2 rw - xfs /dev/sda1 rw,nobarrier
27 1 0:40 / /dev/shm rw - tmpfs tmpfs rw,size=1k
28 1 0:41 / /btr rw - btrfs /dev/sda1 rw
29 1 253:0 / /vol rw - ext4 /dev/mapper/vol rw`,
	}, map[string]string{
		"sys/dev/block/8:1": sda + "sda1", "sys/dev/block/8:2": sda + "sda1",
		"sys/dev/block/8:16": sdb, "sys/dev/block/259:0": nvm, "sys/dev/block/254:0": vda,
		"sys/dev/block/253:0": dm0, "sys/dev/block/252:0": zrm, "sys/class/block/sda1": sda + "sda1",
		dm0 + "slaves/sdb": sdb, dm0 + "slaves/sda1": sda + "sda1",
	})
	for _, c := range []struct {
		number string
		rate   float64 // 0: must not be measured
		want   string  // in the line; "": no doubts
	}{
		{"8:1", 110, ""},
		{"8:1", 5000, "sda: 5000 durable records a second are more than a rotating disk"},
		{"8:2", 0, "mounted with nobarrier"},
		{"0:40", 0, "memory (tmpfs)"},
		{"0:41", 5000, "sda: 5000"},
		{"0:99", 0, ""}, // a network file system
		{"8:16", 0, "sdb has a volatile write cache that the kernel was told not to flush"},
		{"253:0", 0, "sdb has a volatile write cache"},
		{"259:0", 20000, ""},
		{"259:0", 90000, "more than flash"},
		{"254:0", 0, ""}, // the host's business
		{"252:0", 0, "zram0 is memory"},
	} {
		disks, m := s.disks(c.number)
		measured := false
		got := flushDoubts(disks, m, func() (float64, error) {
			measured = true
			return c.rate, nil
		})
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s at %.0f/s: %q, want %q", c.number, c.rate, got, c.want)
		}
		if measured != (c.rate > 0) {
			t.Errorf("%s: measured %v", c.number, measured)
		}
		if strings.ContainsAny(got, "\n") {
			t.Errorf("%s: more than a line: %q", c.number, got)
		}
	}
	disks, m := s.disks("8:1")
	broken := func() (float64, error) { return 0, errors.New("EIO") }
	if got := flushDoubts(disks, m, broken); got != "" {
		t.Errorf("an error while measuring gives %q", got)
	}
}

// TestFlushesHere: it works on this machine's own /sys, finds memory, and measures a rate.
func TestFlushesHere(t *testing.T) {
	dir := t.TempDir()
	if rate, err := durableWrites(dir); err != nil || rate <= 0 {
		t.Errorf("%v durable writes a second, %v", rate, err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("the probe left %v", left)
	}
	disks, m := disksOf(hostSystem, filepath.Join(dir, "not", "there", "yet"))
	if len(disks) == 0 && m.fsType == "" {
		t.Errorf("nothing is known of %s", dir)
	}
	if _, m := disksOf(hostSystem, "/dev/shm"); m.fsType == "tmpfs" {
		var out bytes.Buffer
		warnOfFlushes(&out, "/dev/shm", "")
		if strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), "memory") {
			t.Errorf("a chunk server in memory: %q", out.String())
		}
	}
}
