package emulate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a disk, per second. 0: not limited.
type Limits struct {
	ReadIOPS, WriteIOPS   uint64
	ReadBytes, WriteBytes uint64
}

// HDD is a slow rotating disk: 200 operations and 150 MB a second in each direction.
var HDD = Limits{ReadIOPS: 200, WriteIOPS: 200, ReadBytes: 150e6, WriteBytes: 150e6}

// blkio is where the control groups of the block I/O controller are.
const blkio = "/sys/fs/cgroup/blkio"

// group is a control group.
type group struct{ path string }

func groupOf(name string) group { return group{filepath.Join(blkio, prefix+name)} }

// groupNeeds says what this machine lacks for control groups; nil if nothing.
func groupNeeds() error {
	if _, err := os.Stat(filepath.Join(blkio, "blkio.throttle.read_iops_device")); err == nil {
		return nil
	}
	// The root group has no limits of its own on some kernels: look for the controller itself.
	if _, err := os.Stat(filepath.Join(blkio, "cgroup.procs")); err == nil {
		return nil
	}
	return fmt.Errorf("%w: no version 1 block I/O control groups at %s", errors.ErrUnsupported, blkio)
}

func (g group) make() error {
	if err := os.Mkdir(g.path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make control group %s: %w", g.path, err)
	}
	return nil
}

// limit sets the limits of a device, given as "major:minor". A limit of 0 takes it away.
func (g group) limit(dev string, l Limits) error {
	for file, value := range map[string]uint64{"read_iops": l.ReadIOPS, "write_iops": l.WriteIOPS,
		"read_bps": l.ReadBytes, "write_bps": l.WriteBytes} {
		path := filepath.Join(g.path, "blkio.throttle."+file+"_device")
		if err := os.WriteFile(path, fmt.Appendf(nil, "%s %d", dev, value), 0); err != nil {
			return fmt.Errorf("limit device %s: %w", dev, err)
		}
	}
	return nil
}

// pids returns the processes in the group.
func (g group) pids() ([]int, error) {
	text, err := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var pids []int
	for _, word := range bytes.Fields(text) {
		pid, err := strconv.Atoi(string(word))
		if err != nil {
			return nil, fmt.Errorf("control group %s: %w", g.path, err)
		}
		pids = append(pids, pid)
	}
	return pids, err
}

// remove kills what is left in the group and removes it. It is no error if there is none.
func (g group) remove() error {
	for deadline := time.Now().Add(goneWithin); ; {
		pids, err := g.pids()
		if err != nil {
			return err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended meanwhile
		}
		err = os.Remove(g.path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove control group with processes %v: %w", pids, err)
		}
		time.Sleep(10 * time.Millisecond) // nothing tells when a group has become empty
	}
}
