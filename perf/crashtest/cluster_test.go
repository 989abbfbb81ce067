package crashtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
	"pstorage/perf"
	"pstorage/perf/emulate"
)

// bin is where TestMain built the programs.
var bin string

// TestMain builds the programs once: these tests run them as an operator would.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		if device := os.Getenv(writerEnv); device != "" {
			return writeAndWait(device)
		}
		dir, err := os.MkdirTemp("", "pstorage-crashtest-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-o", dir, "pstorage/cmd/pstorage",
			"pstorage/cmd/pstorage-mdsd", "pstorage/cmd/pstorage-csd", "pstorage/cmd/pstorage-mount")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		bin = dir
		return m.Run()
	}())
}

// long says whether tests run in full.
func long() bool { return !testing.Short() && os.Getenv("PSTORAGE_LONG") == "1" }

// seed returns the seed of a test, and prints it.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if text := os.Getenv("PSTORAGE_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed: PSTORAGE_SEED=%d", s)
	return s
}

func generator(s, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(s, stream)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something that takes its time.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("didn't happen in %v: %s", within, what)
		}
	}
}

// openRig makes a rig of emulated disks that is gone when the test ends.
func openRig(t *testing.T, available func() error) *emulate.Rig {
	t.Helper()
	if err := available(); err != nil {
		t.Skip(err)
	}
	// Not a directory of the test: a mount must be gone before that is removed.
	dir, err := os.MkdirTemp("/var/tmp", "pstorage-crashtest-")
	must(t, err)
	rig, err := emulate.Open(fmt.Sprintf("crash%d", os.Getpid()), dir)
	must(t, err)
	t.Cleanup(func() {
		if err := rig.Close(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return rig
}

// system is a cluster of processes, and a client of it.
type system struct {
	t       *testing.T
	home    string
	servers *perf.Servers
	client  *client.Client
	file    *client.File
}

// newSystem starts a cluster with these disks; paths that aren't absolute are below its home.
func newSystem(t *testing.T, home string, disks ...perf.ServerDisk) *system {
	t.Helper()
	s := &system{t: t, home: home}
	t.Cleanup(func() {
		if t.Failed() {
			s.logs()
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	s.servers, err = perf.StartServers(ctx, perf.ServersOptions{
		Binary: filepath.Join(bin, "pstorage"), Home: home, CS: disks,
		// An address that no other test has: a killed server's port stays free for it.
		IP: fmt.Sprintf("127.%d.%d.1", 1+os.Getpid()>>8&0x7f, os.Getpid()&0xff)})
	must(t, err)
	t.Cleanup(func() {
		if err := s.servers.Stop(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 20*time.Second, "all chunk servers are active", func() bool {
		return s.active() == len(disks)
	})
	return s
}

// active counts the chunk servers that have a lease.
func (s *system) active() int {
	n := 0
	for _, cs := range s.stat().CS {
		if cs.Status == control.CSActive {
			n++
		}
	}
	return n
}

// logs prints the ends of the servers' logs.
func (s *system) logs() {
	for _, name := range []string{"cs", "mds"} {
		text, _ := os.ReadFile(filepath.Join(s.home, "log", name+".log"))
		s.t.Logf("log of %s ends with:\n%s", name, text[max(0, len(text)-6000):])
	}
}

// logSays counts the lines of the chunk servers' log with text in them.
func (s *system) logSays(text string) int {
	all, _ := os.ReadFile(filepath.Join(s.home, "log", "cs.log"))
	return bytes.Count(all, []byte(text))
}

func (s *system) conf() *cluster.Conf {
	s.t.Helper()
	conf, err := cluster.Choose(s.servers.Etc(), "")
	must(s.t, err)
	return conf
}

// connect opens a client and a new file.
func (s *system) connect(name string) {
	s.t.Helper()
	s.t.Cleanup(s.disconnect)
	s.dial()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	a, err := s.client.Create(ctx, &control.CreateReq{Parent: dataplane.RootID, Name: name,
		Type: control.TypeFile, Mode: 0o600})
	must(s.t, err)
	s.file, err = s.client.OpenAttr(a)
	must(s.t, err)
}

func (s *system) dial() {
	s.t.Helper()
	conf := s.conf()
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	must(s.t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s.client, err = client.Open(ctx, client.ClientOptions{Cred: &cred, MDSAddrs: conf.BSOrNone,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	must(s.t, err)
}

// reconnect opens the same file by another client.
func (s *system) reconnect() {
	s.t.Helper()
	id := s.file.ID()
	s.dial()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var err error
	s.file, err = s.client.OpenFile(ctx, id)
	must(s.t, err)
}

// disconnect fails what is under way.
func (s *system) disconnect() {
	if s.client != nil {
		if err := s.client.Close(); err != nil {
			s.t.Error(err)
		}
		s.client = nil
	}
}

func (s *system) start() time.Duration {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	took, err := s.servers.StartCS(ctx)
	must(s.t, err)
	return took
}

// cli runs a command of the command line and returns what it printed.
func (s *system) cli(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "pstorage"), args...)
	cmd.Env = append(os.Environ(), "PSTORAGE_ETC="+s.servers.Etc())
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("pstorage %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s *system) stat() (doc control.StatDoc) {
	s.t.Helper()
	must(s.t, json.Unmarshal([]byte(s.cli("stat", "-o", "json")), &doc))
	return doc
}

// events counts the events of a code so far.
func (s *system) events(code string) int {
	s.t.Helper()
	return strings.Count(s.cli("get-event", "-o", "json"), fmt.Sprintf("%q", code))
}

// move puts a file somewhere else, as a copy with the same holes, and a symbolic link in its place.
func move(t *testing.T, from, to string) {
	t.Helper()
	run(t, "cp", "--sparse=always", from, to)
	must(t, os.Remove(from))
	must(t, os.Symlink(to, from))
}

// run runs a program of the system.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
