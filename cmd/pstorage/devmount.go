package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"pstorage/cmd/cli"
)

// mount mounts the cluster, and returns why it didn't, or "": the rest works without.
func (g *devGroup) mount(ctx context.Context, o devOptions) string {
	if o.noMount {
		return "--no-mount was given"
	}
	if why := cannotMount(); why != "" {
		return why
	}
	if err := clearMountpoint(o.mount); err != nil {
		return cli.OneLine(err)
	}
	p, err := g.start("mount", []string{g.programs.mount, "-f", "-c", devCluster,
		"-o", o.options, "--log", g.d.logFile("mount"), "--pidfile", g.d.pidFile("mount"), o.mount})
	if err == nil {
		g.mounted = p
		err = g.await(ctx, p)
	}
	if err != nil {
		return cli.OneLine(err)
	}
	return ""
}

// cannotMount returns why this user can't mount on this machine, or "".
func cannotMount() string {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "there is no /dev/fuse (as root: modprobe fuse)"
	case err != nil:
		return fmt.Sprintf("/dev/fuse: %v (as root it works)", cli.Plain(err))
	}
	f.Close()
	if os.Geteuid() != 0 {
		return "only root can mount: run the same command as root for it"
	}
	return ""
}

// clearMountpoint makes the directory, and takes away a mount whose process was killed.
func clearMountpoint(path string) error {
	what := "mount on " + path
	// Not stat(2): the kernel may answer that out of its cache, of a dead mount too.
	if err := unix.Statfs(path, new(unix.Statfs_t)); errors.Is(err, syscall.ENOTCONN) {
		if err := detachMount(path); err != nil {
			return cli.Fail(what+": remove the dead mount there", err, "umount -l "+path)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil && mountedOn(string(mounts), path) {
		return cli.Failf(what, "something is mounted there", "choose another directory with --mount")
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return cli.Fail(what, cli.Plain(err), "choose another directory with --mount")
	}
	return nil
}

func detachMount(path string) error {
	if os.Geteuid() == 0 {
		return unix.Unmount(path, unix.MNT_DETACH)
	}
	return fusermount("-u", "-z", path)
}

// fusermount unmounts what a user mounted. Its error is what fusermount3 said.
func fusermount(args ...string) error {
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if text := strings.TrimSpace(string(out)); err != nil && text != "" {
		return errors.New(text)
	}
	return err
}

// mountedOn says whether mountinfo (see proc(5)) has a mount on path.
func mountedOn(mountinfo, path string) bool {
	escaped := strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(path)
	for line := range strings.Lines(mountinfo) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == escaped {
			return true
		}
	}
	return false
}
