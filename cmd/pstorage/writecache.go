package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/perf/hwflush"
)

// Whether a disk keeps what it acknowledged can't be seen from outside (hwflush-check finds out).
// But some settings surely lose data, and some disks are faster than they can be:
//
//	what is seen                                         why data is lost
//	tmpfs, ramfs, zram                                   it is memory
//	file system mounted with nobarrier or barrier=0      it sends no flushes
//	the disk says its cache is "write back", the         the kernel sends no flushes, although
//	kernel was told "write through"                      the cache is volatile
//	more durable writes a second than the disk can do    something on the way confirms too early
//
// Disks of virtual machines are not timed: what they are made of isn't known.

// system is where the kernel describes disks and mounts.
type system struct {
	sys       string // /sys
	mountInfo string // /proc/self/mountinfo
}

var hostSystem = system{"/sys", "/proc/self/mountinfo"}

// diskInfo is a disk at the bottom: no partition, no volume of several.
type diskInfo struct {
	name       string // "sda"
	rotating   bool
	virtual    bool
	memory     bool
	kernelSays string // "write back": the kernel flushes the disk's cache; "write through": it doesn't
	diskSays   string // the same as the disk told it, if known
}

// mountOf is a mount of /proc/self/mountinfo.
type mountOf struct{ fsType, source, options string }

// disksOf returns the disks that a directory, file or block device lies on, and its mount.
func disksOf(s system, path string) ([]diskInfo, mountOf) {
	var st unix.Stat_t
	for { // what doesn't exist yet will be made in its parent
		if err := unix.Stat(path, &st); err == nil || path == "/" || path == "." {
			break
		}
		path = filepath.Dir(path)
	}
	dev := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev = st.Rdev
	}
	number := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	return s.disks(number)
}

// disks is disksOf by device number.
func (s system) disks(number string) ([]diskInfo, mountOf) {
	m := s.mount(number)
	dir, err := filepath.EvalSymlinks(filepath.Join(s.sys, "dev/block", number))
	if err != nil && strings.HasPrefix(m.source, "/dev/") {
		// A file system with device numbers of its own, such as btrfs.
		name := filepath.Base(m.source)
		dir, err = filepath.EvalSymlinks(filepath.Join(s.sys, "class/block", name))
	}
	if err != nil {
		return nil, m
	}
	var found []diskInfo
	for _, disk := range leaves(dir, 0) {
		found = append(found, readDisk(disk))
	}
	return found, m
}

// mount returns the mount of the file system with that device number.
func (s system) mount(number string) mountOf {
	text, _ := os.ReadFile(s.mountInfo)
	for line := range strings.Lines(string(text)) {
		// id parent major:minor root dir options [tags...] - type source super-options
		head, tail, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(head), strings.Fields(tail)
		if ok && len(f) > 5 && len(g) > 2 && f[2] == number {
			return mountOf{g[0], g[1], f[5] + "," + g[2]}
		}
	}
	return mountOf{}
}

// leaves returns the folders of the whole disks below a device: a partition's disk, the disks of a
// volume.
func leaves(dir string, depth int) []string {
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	slaves, _ := os.ReadDir(filepath.Join(dir, "slaves"))
	if len(slaves) == 0 || depth > 8 {
		return []string{dir}
	}
	var all []string
	for _, slave := range slaves {
		below, err := filepath.EvalSymlinks(filepath.Join(dir, "slaves", slave.Name()))
		if err == nil {
			all = append(all, leaves(below, depth+1)...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func readDisk(dir string) diskInfo {
	read := func(name string) string {
		text, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(text))
	}
	d := diskInfo{name: filepath.Base(dir), rotating: read("queue/rotational") == "1",
		kernelSays: read("queue/write_cache")}
	if types, _ := filepath.Glob(filepath.Join(dir, "device/scsi_disk/*/cache_type")); len(types) > 0 {
		text, _ := os.ReadFile(types[0])
		d.diskSays = strings.TrimSpace(string(text))
	}
	starts := func(text string, with ...string) bool {
		return slices.ContainsFunc(with, func(w string) bool { return strings.HasPrefix(text, w) })
	}
	d.memory = starts(d.name, "zram", "ram")
	d.virtual = starts(d.name, "vd", "xvd", "loop", "nbd", "rbd", "zram", "ram", "pmem") ||
		starts(strings.ToUpper(read("device/vendor")), "QEMU", "VMWARE", "MSFT", "VBOX", "XEN",
			"GOOGLE", "AMAZON") || starts(strings.ToUpper(read("device/model")), "QEMU", "VMWARE",
		"VIRTUAL", "VBOX", "AMAZON ELASTIC")
	return d
}

// flushDoubts says in one line why what lies on these disks may not survive a power cut; empty if
// there is no reason to think so. rate measures durable writes per second; it is called at most
// once, and only if it can tell something.
func flushDoubts(disks []diskInfo, m mountOf, rate func() (float64, error)) string {
	if m.fsType == "tmpfs" || m.fsType == "ramfs" {
		return fmt.Sprintf("it is memory (%s): nothing survives a power cut", m.fsType)
	}
	for _, option := range strings.Split(m.options, ",") {
		if option == "nobarrier" || option == "barrier=0" {
			return fmt.Sprintf("%s is mounted with %s: flushes never reach the disk", m.source, option)
		}
	}
	timed, rotating := "", false
	for _, d := range disks {
		if d.memory {
			return fmt.Sprintf("%s is memory: nothing survives a power cut", d.name)
		}
		if strings.HasPrefix(d.diskSays, "write back") && d.kernelSays == "write through" {
			return fmt.Sprintf("%s has a volatile write cache that the kernel was told not to flush "+
				"(/sys/block/%s/queue/write_cache)", d.name, d.name)
		}
		if !d.virtual {
			timed, rotating = d.name, rotating || d.rotating
		}
	}
	if timed == "" {
		return ""
	}
	perSecond, err := rate()
	if err != nil {
		return "" // the disk's errors are told by those who need it
	}
	if why := hwflush.Implausible(perSecond, rotating); why != "" {
		return fmt.Sprintf("%s: %s, so flushes seem not to be carried out", timed, why)
	}
	return ""
}

// durableWrites measures how many single writes a second become durable in dir.
func durableWrites(dir string) (float64, error) {
	f, err := os.CreateTemp(dir, ".flush-probe-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4096)
	write := func() error {
		if _, err := f.WriteAt(block, 0); err != nil {
			return err
		}
		return syscall.Fdatasync(int(f.Fd()))
	}
	if err := write(); err != nil { // the first one writes metadata, too
		return 0, err
	}
	const most, within = 32, 500 * time.Millisecond
	begun, n := time.Now(), 0
	for n < most && time.Since(begun) < within {
		if err := write(); err != nil {
			return 0, err
		}
		n++
	}
	return float64(n) / time.Since(begun).Seconds(), nil
}

// warnOfFlushes prints a line for each of the places of a chunk server that may lose
// acknowledged data in a power cut. journal is empty if it lies in dir.
func warnOfFlushes(out io.Writer, places ...string) {
	warn := func(path string) {
		disks, m := disksOf(hostSystem, path)
		doubts := flushDoubts(disks, m, func() (float64, error) {
			probe := path
			if info, err := os.Stat(path); err == nil && !info.IsDir() {
				if info.Mode()&os.ModeDevice != 0 {
					return 0, nil // nothing is written to a bare device
				}
				probe = filepath.Dir(path)
			}
			return durableWrites(probe)
		})
		if doubts != "" {
			fmt.Fprintf(out, "warning: %s may lose acknowledged data in a power cut: %s; "+
				"see pstorage hwflush-check --help\n", path, doubts)
		}
	}
	for _, path := range places {
		if path != "" {
			warn(path)
		}
	}
}
