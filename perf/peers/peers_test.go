package peers

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pstorage/perf"
)

// TestRows: every run of ours goes through the system, every yardstick through raw fio, and the
// figures of two systems have different names.
func TestRows(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range []string{"one", "two"} {
		for _, row := range rows(name, time.Second, 1<<20) {
			if row.Ours.Front != name || row.Yardstick.Front != perf.FrontRaw &&
				row.Yardstick.Front != "" {
				t.Errorf("%s goes through %q, its yardstick through %q", row.Name, row.Ours.Front,
					row.Yardstick.Front)
			}
			if row.Goal != 0 || row.Bar != 0 {
				t.Errorf("%s has a goal of pstorage", row.Name)
			}
			if seen[row.Name] || !strings.HasPrefix(row.Name, name+"_") {
				t.Errorf("%s: twice, or not of %s", row.Name, name)
			}
			seen[row.Name] = true
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d figures", len(seen))
	}
}

// TestAbsent: a system that isn't installed says which packages have its programs.
func TestAbsent(t *testing.T) {
	y := system{packages: []string{"pack", "age"}, programs: []string{"sh", "no-such-program"}}
	err := y.absent()
	if err == nil || !strings.Contains(err.Error(), "no-such-program") ||
		!strings.Contains(err.Error(), "apt-get install pack age") {
		t.Errorf("%v", err)
	}
	y.programs = []string{"sh"}
	if err := y.absent(); err != nil {
		t.Error(err)
	}
}

// TestUnknown: a name that is no system's is refused before anything starts.
func TestUnknown(t *testing.T) {
	_, err := Run(t.Context(), Options{Only: []string{"ceph", "cehp"}, Dir: "/nowhere"})
	if err == nil || !strings.Contains(err.Error(), `"cehp"`) {
		t.Errorf("%v", err)
	}
}

// TestSaid: the report says what isn't the same for all systems, and what memory each takes.
func TestSaid(t *testing.T) {
	report := &perf.Report{Notes: notes()}
	self := func() ([]int, error) { return []int{os.Getpid()}, nil }
	for _, name := range []string{"one", "two"} {
		if err := addMemory(report, name, self); err != nil {
			t.Fatal(err)
		}
		mb := report.Values()[name+"_memory_mb"]
		if mb < 1 || report.Memory[name] != int64(math.Round(mb*1e6)) {
			t.Errorf("%s: %v MB, %d bytes", name, mb, report.Memory[name])
		}
	}
	bad := errors.New("gone")
	if err := addMemory(report, "x", func() ([]int, error) { return nil, bad }); err != bad {
		t.Errorf("error %v", err)
	}
	var out strings.Builder
	if err := report.WriteTable(&out); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one_memory_mb", "two_memory_mb", "system after the other",
		"its own load generator"} {
		if !strings.Contains(out.String(), word) {
			t.Errorf("no %q in %s", word, out.String())
		}
	}
}

// TestSandbox: what is written to a replaced directory stays inside, a daemon's address is reached
// from inside, and nothing that was started lives on.
func TestSandbox(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	home, own := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(own, "seed"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := openSandbox(home, []string{own})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := s.run(ctx, "sh", "-c", `cat "$0/seed"; echo new >"$0/seed"
		ip -oneline address; sleep 1000 >/dev/null 2>&1 & echo`, own)
	if err != nil {
		t.Error(err)
	}
	if !strings.HasPrefix(out, "old1: lo") || !strings.Contains(out, address) {
		t.Errorf("printed %q", out)
	}
	pids, err := s.pids()
	if err != nil || len(pids) != 3 { // unshare, the first process, sleep
		t.Errorf("processes %v, %v", pids, err)
	}
	if _, err := s.run(ctx, "sh", "-c", "echo why >&2; exit 3"); err == nil ||
		!strings.Contains(err.Error(), "why") {
		t.Errorf("a failed command: %v", err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	for _, pid := range pids {
		if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("process %d lives on: %v", pid, err)
		}
	}
	text, err := os.ReadFile(filepath.Join(own, "seed"))
	if err != nil || string(text) != "old" {
		t.Errorf("outside: %q, %v", text, err)
	}
	if text, err = os.ReadFile(s.owned(own + "/seed")); err != nil || string(text) != "new\n" {
		t.Errorf("inside: %q, %v", text, err)
	}
}
