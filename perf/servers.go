package perf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ServersOptions say what servers to make. Unlike a Cluster's, their disks can be chosen.
type ServersOptions struct {
	Binary string // path of pstorage; the other binaries lie beside it
	Home   string // for configuration, logs and the metadata server's data; made if needed
	CS     []ServerDisk
	IP     string                        // that all listen on; empty: 127.0.0.1
	Wrap   func(args ...string) []string // of the chunk servers' command line; nil: as it is
}

// ServerDisk says what a chunk server is made on.
type ServerDisk struct {
	Dir      string // its data
	Journal  string // -j; empty: in Dir
	LogSize  int64  // -s; 0: what make-cs chooses
	Capacity int64  // 0: what make-cs chooses
	IP       string // empty: that of all
}

// Servers are a metadata server and chunk servers, made and started with the programs' ordinary
// command lines. Files have as many copies as there are chunk servers, at most 3.
type Servers struct {
	o   ServersOptions
	mds *Cluster
	csd *Cluster // nil while killed
}

const serversCluster = "perf"

// StartServers makes and starts them. After an error nothing of them runs.
func StartServers(ctx context.Context, o ServersOptions) (s *Servers, err error) {
	s = &Servers{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop(), logTails(o.Home))
		}
	}()
	for _, dir := range []string{s.Etc(), filepath.Join(o.Home, "log")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return s, err
		}
	}
	// Everything is on this machine: nobody is looked for on its networks.
	err = os.WriteFile(filepath.Join(s.Etc(), "discovery"), []byte("list\n"), 0o644)
	if err != nil {
		return s, err
	}
	if s.o.IP == "" {
		s.o.IP = "127.0.0.1"
	}
	addr, err := freeAddr(s.o.IP)
	if err != nil {
		return s, err
	}
	mds := filepath.Join(o.Home, "mds")
	if err := s.pstorage(ctx, "make-mds", "-I", "-a", addr, "-r", mds, "-P"); err != nil {
		return s, err
	}
	s.mds, err = s.launch(ctx, []string{s.beside("pstorage-mdsd"), "-c", serversCluster, "--log",
		s.logFile("mds")})
	if err != nil {
		return s, err
	}
	for _, disk := range o.CS {
		ip := disk.IP
		if ip == "" {
			ip = s.o.IP
		}
		args := []string{"make-cs", "-r", disk.Dir, "-a", ip}
		if disk.Journal != "" {
			args = append(args, "-j", disk.Journal)
		}
		if disk.LogSize > 0 {
			args = append(args, "-s", strconv.FormatInt(disk.LogSize, 10))
		}
		if disk.Capacity > 0 {
			args = append(args, "--capacity", strconv.FormatInt(disk.Capacity, 10))
		}
		if err := s.pstorage(ctx, args...); err != nil {
			return s, err
		}
	}
	if _, err := s.StartCS(ctx); err != nil {
		return s, err
	}
	copies := min(3, len(o.CS))
	return s, s.pstorage(ctx, "set-attr", "/", "failure-domain=disk",
		fmt.Sprintf("replicas=%d:%d", copies, max(1, copies-1)))
}

// Etc is the directory of the configuration.
func (s *Servers) Etc() string { return filepath.Join(s.o.Home, "etc") }

func (s *Servers) logFile(name string) string {
	return filepath.Join(s.o.Home, "log", name+".log")
}

func (s *Servers) beside(name string) string {
	return filepath.Join(filepath.Dir(s.o.Binary), name)
}

func (s *Servers) env() []string { return append(os.Environ(), "PSTORAGE_ETC="+s.Etc()) }

// pstorage runs a command of the CLI. A password is asked for by make-mds only.
func (s *Servers) pstorage(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, s.o.Binary, append([]string{"-c", serversCluster}, args...)...)
	cmd.Env = s.env()
	cmd.Stdin = strings.NewReader("a password for measuring\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pstorage %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// launch starts a daemon and returns when it says that it is ready.
func (s *Servers) launch(ctx context.Context, args []string) (*Cluster, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = s.env()
	return launch(ctx, cmd, readyMessage)
}

// StartCS starts the chunk servers and returns how long it took until the first was ready.
func (s *Servers) StartCS(ctx context.Context) (time.Duration, error) {
	if s.csd != nil {
		return 0, errors.New("the chunk servers run already")
	}
	args := []string{s.beside("pstorage-csd"), "-c", serversCluster, "--log", s.logFile("cs")}
	if s.o.Wrap != nil {
		args = s.o.Wrap(args...)
	}
	begun := time.Now()
	csd, err := s.launch(ctx, args)
	if err != nil {
		return 0, errors.Join(err, logTails(s.o.Home))
	}
	s.csd = csd
	return time.Since(begun), nil
}

// StopCS stops the chunk servers in an orderly way.
func (s *Servers) StopCS() error {
	if s.csd == nil {
		return nil
	}
	err := s.csd.Stop()
	s.csd = nil
	return err
}

// KillCS kills the chunk servers and their supervisor with SIGKILL, and returns when they are gone.
func (s *Servers) KillCS() error {
	pids, err := s.csd.PIDs()
	if err != nil {
		return err
	}
	for _, pid := range pids { // the supervisor is the first: it restarts nobody
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended with its parent
	}
	<-s.csd.exited
	<-s.csd.silent // the last one that could print has ended
	s.csd = nil
	return nil
}

// CSPIDs returns the chunk servers' processes, without their supervisor.
func (s *Servers) CSPIDs() ([]int, error) {
	if s.csd == nil {
		return nil, nil
	}
	pids, err := s.csd.PIDs()
	if err != nil || len(pids) < 2 {
		return nil, errors.Join(err, errors.New("the supervisor has no chunk server"))
	}
	return pids[1:], nil
}

// csPID returns the process of the chunk server whose data are in dir.
func (s *Servers) csPID(dir string) (int, error) {
	pids, err := s.CSPIDs()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && slices.Contains(strings.Split(string(args), "\x00"), dir) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process serves %s", dir)
}

// Stop stops everything.
func (s *Servers) Stop() error {
	err := s.StopCS()
	if s.mds != nil {
		err = errors.Join(err, s.mds.Stop())
		s.mds = nil
	}
	return err
}

// freeAddr returns an address at which nothing listens.
func freeAddr(ip string) (string, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
