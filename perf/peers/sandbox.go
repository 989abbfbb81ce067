package peers

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"pstorage/perf"
)

// sandbox is where a system's daemons run: process ids, mounts and a network of their own, of which
// nothing is left when it is closed. All they may write of the machine's file system is the
// directory of the measurement; the well-known directories that they keep things in are copies
// there, and /run is empty.
type sandbox struct {
	dir   string
	init  *exec.Cmd // unshare; its child is the first process of the namespace
	stdin io.Closer // the namespace ends when it is closed, so also when this process ends
	diag  bytes.Buffer
	enter []string // a command line's beginning, to run it inside
}

// address is the only one in the sandbox besides that of the loopback, which some don't take.
const address = "10.99.0.1"

// initScript is the first process's: $1 is the sandbox's directory, the others are directories
// that are replaced.
const initScript = `set -e
dir=$1
shift
mount -t tmpfs none /run
ip link set lo up
ip address add ` + address + `/32 dev lo
for own; do
	mkdir -p "$dir/own$own"
	cp -a "$own/." "$dir/own$own/"
	mount --bind "$dir/own$own" "$own"
done
echo up
exec cat >/dev/null
`

// openSandbox makes one whose files are in dir, which is empty.
func openSandbox(dir string, own []string) (*sandbox, error) {
	s := &sandbox{dir: dir}
	args := append([]string{"--mount", "--net", "--pid", "--fork", "--mount-proc", "/bin/sh", "-c",
		initScript, "sandbox", dir}, own...)
	s.init = exec.Command("unshare", args...)
	s.init.Stderr = &s.diag
	s.init.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // no Ctrl-C before what uses it
	stdin, err := s.init.StdinPipe()
	if err != nil {
		return nil, err
	}
	s.stdin = stdin
	out, err := s.init.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.init.Start(); err != nil {
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "up\n" {
		return nil, errors.Join(fmt.Errorf("make namespaces: %q", line), s.close(),
			errors.New(strings.TrimSpace(s.diag.String())))
	}
	tree, err := perf.ProcessTree(s.init.Process.Pid)
	if err == nil && len(tree) < 2 {
		err = errors.New("the sandbox has no process")
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.enter = []string{"nsenter", "--target", strconv.Itoa(tree[1]), "--mount", "--net", "--pid",
		"--"}
	return s, nil
}

// run runs a command inside; a daemon it leaves behind stays. It returns what was printed.
func (s *sandbox) run(ctx context.Context, args ...string) (string, error) {
	name := filepath.Join(s.dir, "output")
	out, err := os.Create(name) // a pipe would be waited for until daemons have closed it
	if err != nil {
		return "", err
	}
	defer out.Close()
	line := append(append([]string(nil), s.enter...), args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	text, readErr := os.ReadFile(name)
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(text))
	}
	return string(text), errors.Join(err, readErr)
}

// runAll runs commands one after the other, until one fails.
func (s *sandbox) runAll(ctx context.Context, commands ...[]string) error {
	for _, c := range commands {
		if _, err := s.run(ctx, c...); err != nil {
			return err
		}
	}
	return nil
}

// owned is where a file of a replaced directory is.
func (s *sandbox) owned(path string) string { return filepath.Join(s.dir, "own", path) }

// folder makes a directory of the sandbox.
func (s *sandbox) folder(name string) (string, error) {
	dir := filepath.Join(s.dir, name)
	return dir, os.MkdirAll(dir, 0o755)
}

// pids are the processes inside.
func (s *sandbox) pids() ([]int, error) { return perf.ProcessTree(s.init.Process.Pid) }

// close ends all processes inside, and with them mounts and network. They are gone when it returns.
func (s *sandbox) close() error {
	s.stdin.Close()
	err := s.init.Wait() // returns when the first process has ended, which ends after all others
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil // how they were ended
	}
	return err
}
