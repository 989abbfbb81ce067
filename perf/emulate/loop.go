package emulate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loop is a loop device in use.
type loop struct {
	device string // "/dev/loop3"
	file   string // what it is made of
}

func (l loop) sys(name string) string {
	return filepath.Join("/sys/block", filepath.Base(l.device), name)
}

// attach makes a loop device with direct I/O over a file, with sectors of the given size.
func attach(file string, sector int) (loop, error) {
	out, err := tool("losetup", "--find", "--show", "--direct-io=on", "--sector-size",
		strconv.Itoa(sector), file)
	if err != nil {
		return loop{}, err
	}
	l := loop{device: strings.TrimSpace(out), file: file}
	direct, err := os.ReadFile(l.sys("loop/dio"))
	if err != nil || strings.TrimSpace(string(direct)) != "1" {
		return loop{}, errors.Join(fmt.Errorf("%w: %s has no direct I/O: the file system of %s "+
			"doesn't allow it", errors.ErrUnsupported, l.device, file), l.detach())
	}
	return l, nil
}

// number returns the device's "major:minor".
func (l loop) number() (string, error) {
	text, err := os.ReadFile(l.sys("dev"))
	return strings.TrimSpace(string(text)), err
}

// leaving says whether the device was detached before and is only kept by a user that can't be
// found, such as a killed process's ring: nothing can be done but by the kernel.
func (l loop) leaving() bool {
	auto, err := os.ReadFile(l.sys("loop/autoclear"))
	mounts, e := mountsOf(l.device)
	return err == nil && e == nil && strings.TrimSpace(string(auto)) == "1" && len(mounts) == 0
}

// detach unmounts and frees the device. The kernel frees it when its last user is gone, so that
// is waited for.
func (l loop) detach() error {
	mounts, err := mountsOf(l.device)
	if err != nil {
		return err
	}
	for _, dir := range mounts {
		if err := unmount(dir); err != nil {
			return err
		}
	}
	if _, err := tool("losetup", "--detach", l.device); err != nil {
		if _, gone := os.Stat(l.sys("loop/backing_file")); errors.Is(gone, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for deadline := time.Now().Add(goneWithin); ; {
		_, err := os.Stat(l.sys("loop/backing_file"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is still in use %v after it was detached", l.device, goneWithin)
		}
		time.Sleep(10 * time.Millisecond) // nothing tells when it is free
	}
}

// loopsOf returns the loop devices whose files begin with the given name.
func loopsOf(filePrefix string) ([]loop, error) {
	paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var found []loop
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // freed meanwhile
		}
		file := strings.TrimSuffix(strings.TrimSpace(string(text)), " (deleted)")
		if strings.HasPrefix(filepath.Base(file), filePrefix) {
			name := filepath.Base(filepath.Dir(filepath.Dir(path)))
			found = append(found, loop{device: "/dev/" + name, file: file})
		}
	}
	return found, nil
}

// mountsOf returns where a device is mounted, the last mount first.
func mountsOf(device string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var dirs []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == device {
			dirs = append([]string{unescape(f[1])}, dirs...)
		}
	}
	return dirs, nil
}

// unescape undoes how /proc/self/mounts writes blanks and backslashes.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// unmount waits for processes that are just ending.
func unmount(dir string) error {
	for deadline := time.Now().Add(goneWithin); ; {
		err := unix.Unmount(dir, 0)
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: it isn't mounted any more
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		time.Sleep(10 * time.Millisecond) // nothing tells when it isn't busy
	}
}

// tool runs a program of the system and returns what it printed.
func tool(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w: there is no %s on the PATH", errors.ErrUnsupported, name)
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err,
			bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
