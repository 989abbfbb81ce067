package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"pstorage/cmd/cli"
)

// In the background the program runs itself again, in a session of its own, and waits for one
// line on a pipe: "ok", or "failed", exit status, and the error. It passes the error on as its own.
const (
	backgroundEnv = "PSTORAGE_MOUNT_BACKGROUND"
	resultFD      = 3
)

// inBackground says whether this process is the one that serves in the background. It takes the
// variable out of the environment, so that no further process takes itself for one.
func inBackground() bool {
	is := os.Getenv(backgroundEnv) != ""
	os.Unsetenv(backgroundEnv)
	return is
}

// startBackground starts the serving process and waits until the mount can be used.
func startBackground(ctx context.Context) error {
	const what = "start the mount's process"
	r, w, err := os.Pipe()
	if err != nil {
		return cli.Fail(what, err, "")
	}
	defer r.Close()
	self, err := os.Executable()
	if err != nil {
		return cli.Fail(what, err, "")
	}
	child := exec.Command(self, os.Args[1:]...)
	child.Env = append(os.Environ(), backgroundEnv+"=1")
	child.ExtraFiles = []*os.File{w}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start() // its stdin, stdout and stderr are /dev/null
	w.Close()
	if err != nil {
		return cli.Fail(what, err, "")
	}
	stop := context.AfterFunc(ctx, func() { child.Process.Signal(syscall.SIGTERM) })
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(r, 1<<16)).ReadString('\n')
	if err != nil {
		child.Wait()
		if ctx.Err() != nil {
			return cli.Failf("mount", "interrupted", "")
		}
		return cli.Failf("mount", fmt.Sprintf("the serving process ended (%v)", child.ProcessState),
			"run it with -f to see why")
	}
	return parseResult(line)
}

// formatResult and parseResult are the line on the pipe.
func formatResult(err error) string {
	if err == nil {
		return "ok\n"
	}
	return fmt.Sprintf("failed %d %s\n", cli.Status(err), cli.OneLine(err))
}

func parseResult(line string) error {
	line = strings.TrimSuffix(line, "\n")
	if line == "ok" {
		return nil
	}
	var status int
	if n, _ := fmt.Sscanf(line, "failed %d", &status); n != 1 {
		return cli.Failf("mount", fmt.Sprintf("the serving process said %q", line), "")
	}
	_, text, _ := strings.Cut(strings.TrimPrefix(line, "failed "), " ")
	return &cli.Error{Why: errors.New(text), Status: status}
}

// tellResult tells the waiting process how mounting went.
func tellResult(err error) {
	pipe := os.NewFile(resultFD, "result")
	io.WriteString(pipe, formatResult(err))
	pipe.Close()
}

// checkMountpoint says whether path can be mounted on, and returns it as an absolute path.
func checkMountpoint(path string) (string, error) {
	mounts, err := cli.Mounts()
	if err != nil {
		return "", err
	}
	abs, err := cli.Place(mounts, path)
	if err != nil {
		return "", err
	}
	if err := cli.RefuseMounted(abs); err != nil {
		return "", err
	}
	info, err := os.Stat(abs)
	what := "mount on " + abs
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", cli.Failf(what, "there is no such directory", "make it with: mkdir -p "+abs)
	case err != nil:
		return "", cli.Fail(what, cli.Plain(err), "")
	case !info.IsDir():
		return "", cli.Failf(what, "it isn't a directory", "choose a directory")
	}
	return abs, nil
}

// holdMountpoint keeps other processes from mounting on a directory, until the file is closed: by
// then they see the mount.
func holdMountpoint(path string) (*os.File, error) {
	what := "mount on " + path
	f, err := os.Open(path)
	if err != nil {
		return nil, cli.Fail(what, cli.Plain(err), "")
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = cli.Failf(what, "another process is about to do that", "pstorage mount lists the mounts")
	case err != nil:
		err = cli.Fail(what, err, "")
	default:
		err = cli.RefuseMounted(path) // one that was quicker
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
