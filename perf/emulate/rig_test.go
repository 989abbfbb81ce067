package emulate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// testRig opens a rig of a name that no other test process has.
func testRig(t *testing.T, dir string) *Rig {
	t.Helper()
	if err := Available(); err != nil {
		t.Skip(err)
	}
	r, err := Open(fmt.Sprintf("test%d", os.Getpid()), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// memoryDir returns a directory in memory if there is one, so that others who use the disk don't
// slow a measurement.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "pstorage-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// fioIOPS runs fio on a device and returns its rate.
func fioIOPS(r *Rig, device, rw string) (float64, error) {
	args := r.Wrap("fio", "--name=x", "--filename="+device, "--ioengine=psync", "--direct=1",
		"--thread", "--numjobs=8", "--group_reporting", "--rw="+rw, "--bs=4k", "--time_based",
		"--ramp_time=1", "--runtime=4", "--rate_iops=200", // each job: others need the CPUs, too
		"--size=64M", "--output-format=json")
	out, err := exec.Command(args[0], args[1:]...).Output()
	if err != nil {
		return 0, fmt.Errorf("fio: %w", err)
	}
	var doc struct {
		Jobs []struct{ Read, Write struct{ IOPS float64 } }
	}
	if err := json.Unmarshal(out[bytes.IndexByte(out, '{'):], &doc); err != nil {
		return 0, err
	}
	return doc.Jobs[0].Read.IOPS + doc.Jobs[0].Write.IOPS, nil
}

// TestLimit: fio sees the speed that was set, and full speed when nothing is limited. Disks of one
// rig don't slow each other: all are measured at the same time.
func TestLimit(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("there is no fio here")
	}
	r := testRig(t, memoryDir(t))
	for tries := 3; ; tries-- { // a busy machine can keep fio from asking often enough
		wrong := measureLimits(t, r, tries)
		if len(wrong) == 0 {
			return
		}
		if tries == 1 {
			t.Fatal(strings.Join(wrong, "\n"))
		}
		t.Logf("once more, because of: %s", strings.Join(wrong, "; "))
	}
}

// measureLimits returns what is wrong.
func measureLimits(t *testing.T, r *Rig, try int) (wrong []string) {
	t.Helper()
	type result struct {
		iops float64
		err  error
	}
	cases := []struct {
		rw          string
		before      Limits // set first and replaced
		limits      Limits
		least, most float64
		got         chan result
	}{
		{rw: "randread", limits: HDD, least: 190, most: 210},
		{rw: "randwrite", limits: HDD, least: 190, most: 210},
		{rw: "randread", limits: Limits{ReadBytes: 2 << 20}, least: 486, most: 538},
		{rw: "randread", before: HDD, least: 600, most: 1e9},
	}
	for i := range cases {
		c := &cases[i]
		d, err := r.Add(fmt.Sprintf("disk%dx%d", try, i), 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range []Limits{c.before, c.limits} {
			if err := d.Limit(l); err != nil {
				t.Fatal(err)
			}
		}
		c.got = make(chan result, 1)
		go func() {
			iops, err := fioIOPS(r, d.Device(), c.rw)
			c.got <- result{iops, err}
		}()
	}
	for _, c := range cases {
		if got := <-c.got; got.err != nil || got.iops < c.least || got.iops > c.most {
			wrong = append(wrong, fmt.Sprintf("%s with %+v: %.1f IOPS, %v; want %.0f to %.0f", c.rw,
				c.limits, got.iops, got.err, c.least, c.most))
		}
	}
	return wrong
}

// TestSweepAfterCrash: what a rig leaves that was never closed is found and removed, by name and
// by Sweep, with a mount and a process that uses it.
func TestSweepAfterCrash(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	dir, mnt := t.TempDir(), t.TempDir()
	name := fmt.Sprintf("crash%d", os.Getpid())
	for _, how := range []string{"open", "sweep"} {
		r, err := Open(name, dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(name, dir); !errors.Is(err, ErrInUse) {
			t.Errorf("a second rig of the same name: %v", err)
		}
		d, err := r.Add("a", 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Mount(mnt); err != nil {
			t.Fatal(err)
		}
		args := r.Wrap("sleep", "1000")
		user := exec.Command(args[0], args[1:]...)
		user.Dir = mnt
		if err := user.Start(); err != nil {
			t.Fatal(err)
		}
		r.lock.Close() // as when the process ends
		if how == "sweep" {
			swept, err := Sweep()
			if err != nil || !strings.Contains(strings.Join(swept, " "), name) {
				t.Errorf("swept %v, %v", swept, err)
			}
		} else {
			again, err := Open(name, dir)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			again.lock.Close()
		}
		if err := user.Wait(); err == nil {
			t.Error("the process wasn't killed")
		}
		if mounts, err := mountsOf(d.Device()); err != nil || len(mounts) > 0 {
			t.Errorf("%s: still mounted on %v, %v", how, mounts, err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			t.Errorf("%s: files are left: %v", how, left)
		}
		if loops, err := loopsOf(prefix + name); err != nil || len(loops) > 0 {
			t.Errorf("%s: loop devices are left: %v, %v", how, loops, err)
		}
	}
}

// TestMount: the file system is usable, empty, and gone after Close.
func TestMount(t *testing.T) {
	r := testRig(t, t.TempDir())
	mnt := t.TempDir()
	d, err := r.Add("ssd", 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Mount(mnt); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(mnt); err != nil || len(entries) > 0 {
		t.Errorf("a new disk has %v, %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(mnt, "x"), []byte("hello"), 0o600); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(mnt); len(entries) > 0 {
		t.Error("it is still mounted")
	}
	if _, err := os.Stat(r.group.path); err == nil {
		t.Error("the control group is still there")
	}
}

func TestBadNames(t *testing.T) {
	for _, name := range []string{"", "a/b", "A", "a-b", strings.Repeat("a", 33)} {
		if _, err := Open(name, t.TempDir()); err == nil {
			t.Errorf("name %q is accepted", name)
		}
	}
	if got := unescape(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("unescape: %q", got)
	}
}
