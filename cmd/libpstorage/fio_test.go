package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// buildEngine makes the library and fio's engine in dir, out of the source of fio that an earlier
// make fio-engine left, or that can be fetched.
func buildEngine(t *testing.T, dir string) (engine string) {
	t.Helper()
	run(t, []string{"CGO_ENABLED=1"}, "go", "build", "-buildmode=c-shared", "-o",
		filepath.Join(dir, "libpstorage.so"), ".")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio/build", dir)
	cmd.Env = os.Environ()
	if src, err := filepath.Abs("../../bin/fio-src"); err == nil && os.Getenv("FIO_SRC") == "" {
		if _, err := os.Stat(filepath.Join(src, "config-host.h")); err == nil {
			cmd.Env = append(cmd.Env, "FIO_SRC="+src)
		}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 3 {
		t.Skipf("%s", out)
	}
	if err != nil {
		t.Fatalf("build fio's engine: %v\n%s", err, out)
	}
	return filepath.Join(dir, "fio-pstorage.so")
}

// TestFioEngine has fio write and verify through its own engine.
func TestFioEngine(t *testing.T) {
	needs(t, "gcc", "go", "fio")
	dir := t.TempDir()
	engine := buildEngine(t, dir)
	env := append(startCluster(t, dir), "ENGINE="+engine, "CLUSTER=dev", "SIZE=2m")
	var report struct {
		Jobs []struct {
			Error       int
			Read, Write struct {
				Bytes int64 `json:"io_bytes"`
			}
		}
	}
	out := run(t, env, "fio", "--output-format=json", "../../perf/jobs/libpstorage-verify.fio")
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Jobs) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	if j := report.Jobs[0]; j.Error != 0 || j.Read.Bytes != 4<<20 || j.Write.Bytes != 4<<20 {
		t.Errorf("not all was written and verified: %+v", j)
	}
	run(t, env, "fio", "--runtime=200ms", "--size=4m",
		"../../perf/jobs/libpstorage-randread-q32.fio")
	trim := []string{"--name=t", "--ioengine=external:" + engine, "--cluster=dev", "--thread",
		"--bs=4k"}
	run(t, env, "fio", append(trim, "--filename=/trim", "--rw=randtrim", "--size=1m")...)

	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"a fork":  {[]string{"--filename=/perf.data", "--cluster=dev"}, "thread=1"},
		"no file": {[]string{"--thread", "--cluster=dev"}, "slash"},
		"a stranger": {[]string{"--thread", "--filename=/perf.data", "--cluster=nosuch"},
			"nosuch"},
		"a file that isn't there": {[]string{"--thread", "--filename=/none",
			"--cluster=dev"}, "none"},
	} {
		// The engine first: only then fio knows its options.
		args := append([]string{"--name=t", "--ioengine=external:" + engine, "--rw=read", "--size=1m",
			"--bs=4k"}, c.args...)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		cmd := exec.CommandContext(ctx, "fio", args...)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if cancel(); err == nil || ctx.Err() == context.DeadlineExceeded ||
			!strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestFioEngineNotBuilt: where the engine can't be built, make fio-engine says why.
func TestFioEngineNotBuilt(t *testing.T) {
	for _, tool := range []string{"gcc", "fio"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	dir, source := t.TempDir(), t.TempDir()
	refused := func(want string) {
		t.Helper()
		cmd := exec.Command("fio/build", dir)
		cmd.Env = append(os.Environ(), "FIO_SRC="+source)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(string(out), want) {
			t.Errorf("%v, %s; want %q", err, out, want)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused("run make lib")
	write(filepath.Join(dir, "libpstorage.so"), "")
	refused("isn't fio's source")
	write(filepath.Join(source, "ioengines.h"), "")
	write(filepath.Join(source, "FIO-VERSION-GEN"), "DEF_VER=fio-0.1\n")
	refused("isn't the source of fio-")
}
