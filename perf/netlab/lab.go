// Package netlab makes networks of one machine's network namespaces: nodes with an address each
// and a veth pair to one bridge, links of a chosen speed (tbf), and cuts per pair and direction
// (nftables). Nothing of it is connected to the machine's own network.
//
//	lab/eth0 --veth-- bridge (in a namespace of its own) --veth-- other/eth0
//
// It needs root, ip, tc and nft. What a crashed process left behind is removed by the next Open of
// the same name, or by Sweep.
package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	prefix     = "pstorage-lab-" // of the names of namespaces, and of directories
	runDir     = "/run/pstorage-netlab"
	switchName = "switch"
	table      = "pstoragelab"
	goneWithin = 20 * time.Second // for killed processes and mounts to go away
)

var goodName = regexp.MustCompile(`^[a-z0-9]{1,12}$`)

// ErrInUse is the error of Open when another process has a lab of that name.
var ErrInUse = errors.New("in use by another process")

// Lab is a network. It may be used by one goroutine at a time, but for Node.Start.
type Lab struct {
	name  string
	dir   string
	lock  *os.File
	nodes []*Node
	spawn chan spawnRequest
}

// Available says what keeps labs from working here, wrapping errors.ErrUnsupported; nil: nothing.
func Available() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: network namespaces need root", errors.ErrUnsupported)
	}
	for _, tool := range []string{"ip", "tc", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: %s isn't installed", errors.ErrUnsupported, tool)
		}
	}
	return nil
}

// Open makes a lab without nodes. What an earlier one of the same name left behind is removed
// first, its processes killed. Names are small letters and digits; only one lab of a name exists
// at a time. Files of the lab belong in a directory below parent, which Dir names.
func Open(name, parent string) (*Lab, error) {
	if !goodName.MatchString(name) {
		return nil, fmt.Errorf("name %q of a lab: must be 1 to 12 small letters and digits", name)
	}
	if err := Available(); err != nil {
		return nil, err
	}
	lock, err := lockName(name)
	if err != nil {
		return nil, fmt.Errorf("network lab %q: %w", name, err)
	}
	l := &Lab{name: name, dir: filepath.Join(parent, prefix+name), lock: lock,
		spawn: make(chan spawnRequest)}
	_, err = clear(lock, name)
	if err == nil {
		// Written down first, so that a crash leaves no directory that nobody knows of.
		_, err = lock.WriteAt([]byte(l.dir), 0)
	}
	if err == nil {
		err = os.Mkdir(l.dir, 0o755)
	}
	if err == nil {
		err = l.makeSwitch()
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("network lab %q: %w", name, err)
	}
	go l.spawner()
	return l, nil
}

// Dir is a directory for the lab's files. Close removes it, with everything that is mounted there.
func (l *Lab) Dir() string { return l.dir }

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

// tool runs a program, with input if it isn't empty, and returns what it printed.
func tool(input string, args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// namespace is the name of a node's network namespace.
func namespace(lab, label string) string { return prefix + lab + "-" + label }

func (l *Lab) makeSwitch() error {
	ns := namespace(l.name, switchName)
	_, err := tool("", "ip", "netns", "add", ns)
	if err == nil {
		_, err = tool("", "ip", "-n", ns, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
	}
	if err == nil {
		_, err = tool("", "ip", "-n", ns, "link", "set", "br0", "up")
	}
	return err
}

// namespaces returns the namespaces of the labs whose names begin with the prefix.
func namespaces(ofPrefix string) ([]string, error) {
	entries, err := os.ReadDir("/run/netns")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ofPrefix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// clear removes everything that a lab made, in an order that can be repeated. The caller has the
// lock, whose file names the directory. It says whether there was anything.
func clear(lock *os.File, name string) (found bool, err error) {
	spaces, err := namespaces(prefix + name + "-")
	errs := []error{err}
	for _, ns := range spaces {
		found = true
		errs = append(errs, killAll(ns))
	}
	var buf [4096]byte
	n, _ := lock.ReadAt(buf[:], 0) // io.EOF: it is shorter
	if dir := string(buf[:n]); filepath.Base(dir) == prefix+name {
		if _, err := os.Lstat(dir); err == nil {
			found = true
		}
		errs = append(errs, unmountBelow(dir), os.RemoveAll(dir))
	}
	for _, ns := range spaces {
		_, err := tool("", "ip", "netns", "del", ns)
		errs = append(errs, err)
	}
	if err = errors.Join(errs...); err == nil {
		err = lock.Truncate(0)
	}
	return found, err
}

// killAll kills the processes of a namespace and returns when they are gone.
func killAll(ns string) error {
	deadline := time.Now().Add(goneWithin)
	for {
		out, err := tool("", "ip", "netns", "pids", ns)
		if err != nil || strings.TrimSpace(out) == "" {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of namespace %s don't end: %s", ns, strings.Fields(out))
		}
		for _, field := range strings.Fields(out) {
			var pid int
			if _, err := fmt.Sscan(field, &pid); err == nil && pid > 1 {
				_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// unmountBelow unmounts what is mounted in dir.
func unmountBelow(dir string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(text), "\n")
	var errs []error
	for i := len(lines) - 1; i >= 0; i-- { // the newest first
		fields := strings.Fields(lines[i])
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			errs = append(errs, unix.Unmount(fields[4], unix.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

// Sweep removes what labs of crashed processes left behind, and returns their names.
func Sweep() ([]string, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var swept []string
	errs := []error{err}
	for _, e := range entries {
		lock, err := lockName(e.Name())
		if errors.Is(err, ErrInUse) {
			continue
		}
		if err == nil {
			var found bool
			found, err = clear(lock, e.Name())
			err = errors.Join(err, lock.Close())
			if found {
				swept = append(swept, e.Name())
			}
		}
		errs = append(errs, err)
	}
	return swept, errors.Join(errs...)
}

// Close takes everything away: processes of the nodes are killed, the directory is removed. The
// empty file of the lock stays: if it were removed, two could each hold a lock of one name.
func (l *Lab) Close() error {
	if l.lock == nil {
		return nil
	}
	_, err := clear(l.lock, l.name)
	close(l.spawn)
	err = errors.Join(err, l.lock.Close())
	l.lock = nil
	return err
}
