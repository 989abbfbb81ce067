package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
)

// programs are the paths of the other binaries.
type programs struct{ mdsd, csd, mount string }

// findPrograms looks beside this program, then in PATH.
func findPrograms() (programs, error) {
	var p programs
	self, err := os.Executable()
	if err != nil {
		return p, cli.Fail("find this program", err, "")
	}
	for name, to := range map[string]*string{
		"pstorage-mdsd": &p.mdsd, "pstorage-csd": &p.csd, "pstorage-mount": &p.mount} {
		beside := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(beside); err == nil {
			*to = beside
			continue
		}
		found, err := exec.LookPath(name)
		if err != nil {
			return p, cli.Failf("find "+name, "it is neither beside "+self+" nor in PATH",
				"build all programs with: make build")
		}
		if *to, err = filepath.Abs(found); err != nil {
			return p, cli.Fail("find "+name, err, "")
		}
	}
	return p, nil
}

// devProc is a daemon's process.
type devProc struct {
	name   string
	cmd    *exec.Cmd
	ready  chan struct{} // closed when it says that it is ready
	exited chan struct{} // closed when it has; then err is set
	err    error
}

// devGroup is all processes of a development cluster.
type devGroup struct {
	d        *dev
	programs programs
	out      io.Writer
	spawner  *cli.Spawner

	daemons []*devProc // in the order of starting
	mounted *devProc
}

func newDevGroup(d *dev, p programs, out io.Writer) *devGroup {
	return &devGroup{d: d, programs: p, out: out, spawner: cli.NewSpawner()}
}

// startDaemons starts all daemons and waits until they are ready. Chunk servers wait for the
// metadata server by themselves, so all start at the same time; but in a new cluster one after
// the other, so that cs1 gets the id 1.
func (g *devGroup) startDaemons(ctx context.Context) error {
	for _, c := range slices.Concat(g.d.mds, g.d.cs) {
		p, err := g.start(c.name, g.command(c))
		if err != nil {
			return err
		}
		g.daemons = append(g.daemons, p)
		if g.d.fresh && c.kind == cluster.CS {
			if err := g.await(ctx, p); err != nil {
				return err
			}
		}
	}
	for _, p := range g.daemons {
		if err := g.await(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// command returns the command line that runs a daemon.
func (g *devGroup) command(c devDaemon) []string {
	program := g.programs.csd
	if c.kind == cluster.MDS {
		program = g.programs.mdsd
	}
	return []string{program, "-c", devCluster, "-r", c.dir, "--log", g.d.logFile(c.name),
		"--pidfile", g.d.pidFile(c.name)}
}

// start starts a process in a process group of its own: a Ctrl-C on the terminal is for us alone,
// who stop the processes in order. If we are killed they get SIGTERM.
func (g *devGroup) start(name string, args []string) (*devProc, error) {
	what := "start " + name
	logFile, err := os.OpenFile(g.d.logFile(name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, cli.Fail(what, err, "")
	}
	defer logFile.Close()
	notify, socket, err := listenNotify(name)
	if err != nil {
		return nil, cli.Fail(what, err, "")
	}
	p := &devProc{name: name, ready: make(chan struct{}), exited: make(chan struct{})}
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Dir = g.d.dir
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	p.cmd.Stdout, p.cmd.Stderr = logFile, logFile
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := g.spawner.Start(p.cmd, syscall.SIGTERM); err != nil {
		notify.Close()
		return nil, cli.Fail(what, err, "")
	}
	go func() {
		if awaitNotify(notify) {
			close(p.ready)
		}
	}()
	go func() {
		p.err = p.cmd.Wait()
		notify.Close()
		close(p.exited)
	}()
	return p, nil
}

// listenNotify makes the socket at which a process says that it is ready. Its name is in the
// abstract name space: no file, no limit on the directory's length.
func listenNotify(name string) (*net.UnixConn, string, error) {
	socket := fmt.Sprintf("@pstorage-dev/%d/%s/%d", os.Getpid(), name, time.Now().UnixNano())
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	return conn, socket, err
}

// awaitNotify returns whether READY=1 came before the socket was closed.
func awaitNotify(conn *net.UnixConn) bool {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return false
		}
		for line := range bytes.Lines(buf[:n]) {
			if string(bytes.TrimSpace(line)) == "READY=1" {
				conn.Close()
				return true
			}
		}
	}
}

// await waits until p is ready.
func (g *devGroup) await(ctx context.Context, p *devProc) error {
	what, advice := "start "+p.name, "see "+g.d.logFile(p.name)
	select {
	case <-p.ready:
		return nil
	case <-p.exited:
		why := fmt.Sprintf("it ended (%v)", p.cmd.ProcessState)
		if line := lastLine(g.d.logFile(p.name)); line != "" {
			why += ": " + line
		}
		return cli.Failf(what, why, advice)
	case <-time.After(devStartWithin):
		return cli.Failf(what, fmt.Sprintf("it isn't ready after %v", devStartWithin), advice)
	case <-ctx.Done():
		return cli.Failf(what, "interrupted", "")
	}
}

// lastLine returns the last line of a log that a person can make use of.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 4096 {
		f.Seek(-4096, io.SeekEnd)
	}
	text, _ := io.ReadAll(f)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return clean(lines[len(lines)-1])
}

// watch reports daemons that end, until ctx ends. A killed daemon stays dead: that is what one
// wants to see.
func (g *devGroup) watch(ctx context.Context) {
	ended := make(chan *devProc)
	all := g.daemons
	if g.mounted != nil {
		all = append(all[:len(all):len(all)], g.mounted)
	}
	for _, p := range all {
		go func() {
			select {
			case <-p.exited:
				select {
				case ended <- p:
				case <-ctx.Done():
				}
			case <-ctx.Done():
			}
		}()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-ended:
			fmt.Fprintf(g.out, "%s has ended (%v)", p.name, p.cmd.ProcessState)
			if p == g.mounted {
				fmt.Fprintln(g.out)
				continue
			}
			fmt.Fprintf(g.out, "; start it again with:\n  PSTORAGE_ETC=%s %s &\n", quoted(g.d.etc),
				shellLine(p.cmd.Args))
		}
	}
}

func shellLine(args []string) string {
	words := make([]string, len(args))
	for i, arg := range args {
		words[i] = quoted(arg)
	}
	return strings.Join(words, " ")
}

// stop stops everything, the mount first and the metadata server last.
func (g *devGroup) stop() {
	if g.mounted != nil {
		g.stopAll([]*devProc{g.mounted})
	}
	servers := min(len(g.d.mds), len(g.daemons)) // those are the first
	g.stopAll(g.daemons[servers:])
	g.stopAll(g.daemons[:servers])
	if err := g.sweep(); err != nil { // what a person started again by hand
		fmt.Fprintln(g.out, cli.OneLine(err))
	}
}

func (g *devGroup) stopAll(procs []*devProc) {
	var wg sync.WaitGroup
	for _, p := range procs {
		wg.Go(func() {
			p.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-p.exited:
			case <-time.After(devStopWithin):
				fmt.Fprintf(g.out, "%s doesn't stop: killing it\n", p.name)
				p.cmd.Process.Kill()
				<-p.exited
			}
		})
	}
	wg.Wait()
}

// sweep stops daemons of this directory that aren't our children: left by a command that was
// killed, or started by hand. They are found by their PID files.
func (g *devGroup) sweep() error {
	files, err := filepath.Glob(filepath.Join(g.d.dir, "run", "*.pid"))
	if err != nil {
		return cli.Fail("look for old processes", err, "")
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || !g.isOurs(pid) {
			os.Remove(file)
			continue
		}
		if err := stopProcess(pid); err != nil {
			return cli.Fail(fmt.Sprintf("stop %s of an earlier run (process %d)",
				strings.TrimSuffix(filepath.Base(file), ".pid"), pid), err, "stop it by hand")
		}
		os.Remove(file)
	}
	return nil
}

// isOurs says whether pid is one of our programs at work on this directory, and not a stranger
// that got the number of a process that is gone.
func (g *devGroup) isOurs(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || pid <= 1 {
		return false
	}
	args := strings.Split(string(text), "\x00")
	if !strings.HasPrefix(filepath.Base(args[0]), "pstorage-") {
		return false
	}
	for _, arg := range args[1:] {
		if arg == g.d.dir || strings.HasPrefix(arg, g.d.dir+"/") {
			return true
		}
	}
	return false
}

// stopProcess stops a process that isn't our child.
func stopProcess(pid int) error {
	signal := syscall.SIGTERM
	deadline := time.Now().Add(devStopWithin)
	for {
		err := syscall.Kill(pid, signal)
		switch {
		case errors.Is(err, syscall.ESRCH):
			return nil
		case err != nil:
			return err
		}
		for range 50 {
			if syscall.Kill(pid, 0) == syscall.ESRCH {
				return nil
			}
			time.Sleep(20 * time.Millisecond)
		}
		if time.Now().After(deadline) {
			if signal == syscall.SIGKILL {
				return errors.New("it doesn't end")
			}
			signal, deadline = syscall.SIGKILL, time.Now().Add(5*time.Second)
		}
	}
}
