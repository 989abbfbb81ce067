package emulate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	prefix     = "pstorage-emulate-" // of the names of files and control groups
	runDir     = "/run/pstorage-emulate"
	goneWithin = 20 * time.Second // for processes, mounts and devices to go away
)

var goodName = regexp.MustCompile(`^[a-z0-9]{1,32}$`)

// ErrInUse is the error of Open when another process has a rig of that name.
var ErrInUse = errors.New("in use by another process")

// Rig is a set of emulated disks, and the control group in which they are slow. It may be used by
// one goroutine at a time.
type Rig struct {
	name  string
	dir   string
	group group
	lock  *os.File
	disks []*Disk
	fault []*Faulty
}

// Disk is an emulated disk.
type Disk struct {
	rig    *Rig
	loop   loop
	number string // "7:3"
}

// Available says what keeps rigs from working here, wrapping errors.ErrUnsupported; nil: nothing.
func Available() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: loop devices and control groups need root", errors.ErrUnsupported)
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return fmt.Errorf("%w: no loop devices here", errors.ErrUnsupported)
	}
	return groupNeeds()
}

// Open makes an empty rig whose files go to dir. What an earlier one of the same name left behind
// is removed first. Names are small letters and digits; only one rig of a name exists at a time.
func Open(name, dir string) (*Rig, error) {
	if !goodName.MatchString(name) {
		return nil, fmt.Errorf("name %q of a rig: must be 1 to 32 small letters and digits", name)
	}
	if err := Available(); err != nil {
		return nil, err
	}
	lock, err := lockName(name)
	if err != nil {
		return nil, fmt.Errorf("emulated disks %q: %w", name, err)
	}
	r := &Rig{name: name, dir: dir, group: groupOf(name), lock: lock}
	if _, err = clear(name); err == nil {
		err = r.group.make()
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("emulated disks %q: %w", name, err)
	}
	return r, nil
}

// lockName takes the lock of a name. It is free as soon as its owner has ended, in any way; the
// owner's children don't inherit it.
func lockName(name string) (*os.File, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(runDir, name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, err
	}
	return f, nil
}

// clear removes everything that a rig of that name made, in an order that can be repeated. The
// caller has the lock. It says whether there was anything.
func clear(name string) (found bool, err error) {
	_, err = os.Stat(groupOf(name).path)
	found = err == nil
	errs := []error{groupOf(name).remove()} // kills the processes that keep mounts busy
	served, err := servedOf(prefix + name + "-")
	errs = append(errs, err)
	loops, err := loopsOf(prefix + name + "-")
	errs = append(errs, err)
	found = found || len(loops)+len(served) > 0
	for _, l := range loops {
		if l.leaving() {
			continue
		}
		err := l.detach()
		if err == nil && !slices.Contains(served, l.file) {
			err = os.Remove(l.file)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, file := range served {
		errs = append(errs, unserve(file))
	}
	return found, errors.Join(errs...)
}

// Sweep removes what rigs of crashed processes left behind, and returns their names.
func Sweep() ([]string, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var swept []string
	errs := []error{err}
	for _, entry := range entries {
		name := entry.Name()
		if !goodName.MatchString(name) {
			continue
		}
		lock, err := lockName(name)
		if errors.Is(err, ErrInUse) {
			continue
		}
		if err == nil {
			var found bool
			found, err = clear(name)
			err = errors.Join(err, lock.Close())
			if found {
				swept = append(swept, name)
			}
		}
		errs = append(errs, err)
	}
	return swept, errors.Join(errs...)
}

// Add makes a disk of size bytes, not limited. Its file is sparse. label becomes a part of the
// file's name: small letters and digits.
func (r *Rig) Add(label string, size int64) (*Disk, error) {
	return r.AddSectors(label, size, 512)
}

// AddSectors is Add for a disk that takes only I/O aligned to sector bytes: 512 to 4096.
func (r *Rig) AddSectors(label string, size int64, sector int) (*Disk, error) {
	if !goodName.MatchString(label) || size < 1<<20 || size%4096 != 0 {
		return nil, fmt.Errorf("emulated disk %q of %d bytes: a name of small letters and digits and "+
			"at least 1 MiB in steps of 4 KiB are needed", label, size)
	}
	file := filepath.Join(r.dir, prefix+r.name+"-"+label)
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	err = errors.Join(f.Truncate(size), f.Close())
	var l loop
	if err == nil {
		l, err = attach(file, sector)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("emulate disk %q: %w", label, err), os.Remove(file))
	}
	d := &Disk{rig: r, loop: l}
	if d.number, err = l.number(); err != nil {
		return nil, errors.Join(err, l.detach(), os.Remove(file))
	}
	r.disks = append(r.disks, d)
	return d, nil
}

// Wrap returns a command line that runs args as a process of the control group: its disk I/O, and
// that of its children, is limited from the first operation on.
func (r *Rig) Wrap(args ...string) []string {
	return append([]string{"/bin/sh", "-c", `echo $$ >"$0" && exec "$@"`,
		filepath.Join(r.group.path, "cgroup.procs")}, args...)
}

// Join puts a running process with all its threads in the control group.
func (r *Rig) Join(pid int) error {
	path := filepath.Join(r.group.path, "cgroup.procs")
	if err := os.WriteFile(path, fmt.Append(nil, pid), 0); err != nil {
		return fmt.Errorf("slow down process %d: %w", pid, err)
	}
	return nil
}

// Close takes everything away: processes in the control group are killed, disks unmounted and
// freed, their files removed. The empty file of the lock stays: if it were removed, two could
// each hold a lock of the same name.
func (r *Rig) Close() error {
	if r.lock == nil {
		return nil
	}
	var errs []error
	for _, f := range r.fault {
		errs = append(errs, f.Close())
	}
	_, err := clear(r.name)
	errs = append(errs, err, r.lock.Close())
	r.lock = nil
	return errors.Join(errs...)
}

// Device is the path of the disk's block device.
func (d *Disk) Device() string { return d.loop.device }

// Limit sets the speed of the disk, at once, for the processes of the rig's control group.
func (d *Disk) Limit(l Limits) error { return d.rig.group.limit(d.number, l) }

// Mount makes an ext4 file system on the disk and mounts it on dir, which must be there. The
// directory is empty then, and nothing is written in the background.
func (d *Disk) Mount(dir string) error {
	_, err := tool("mkfs.ext4", "-q", "-F", "-m", "0", "-T", "largefile4", "-E",
		"nodiscard,lazy_itable_init=0,lazy_journal_init=0", d.loop.device)
	if err != nil {
		return err
	}
	if err := unix.Mount(d.loop.device, dir, "ext4", unix.MS_NOATIME, "noinit_itable"); err != nil {
		return fmt.Errorf("mount %s on %s: %w", d.loop.device, dir, err)
	}
	return os.Remove(filepath.Join(dir, "lost+found"))
}

// String describes the disk for people.
func (d *Disk) String() string {
	return d.loop.device + " over " + strings.TrimPrefix(filepath.Base(d.loop.file), prefix)
}

// Operations returns how many operations the disk has done since it was made.
func (d *Disk) Operations() (uint64, error) {
	text, err := os.ReadFile(d.loop.sys("stat"))
	if err != nil {
		return 0, err
	}
	// Fields of the kernel's block device statistics: the first is reads, the fifth writes.
	fields := strings.Fields(string(text))
	if len(fields) < 5 {
		return 0, fmt.Errorf("statistics of %s: %q", d.loop.device, text)
	}
	reads, err := strconv.ParseUint(fields[0], 10, 64)
	if err != nil {
		return 0, err
	}
	writes, err := strconv.ParseUint(fields[4], 10, 64)
	return reads + writes, err
}
