package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane/cluster"
	"pstorage/perf"
)

// needs skips a test that can't run here.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	if testing.Short() && os.Getenv("CI") == "" {
		t.Skip("builds everything and starts a cluster: not with -short outside of CI")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
}

// run runs a command and fails the test if it fails.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// build makes the library and, with gcc, a program that uses it.
func build(t *testing.T, dir, source string) (program string) {
	t.Helper()
	lib := filepath.Join(dir, "libpstorage.so")
	run(t, []string{"CGO_ENABLED=1"}, "go", "build", "-buildmode=c-shared", "-o", lib, ".")
	program = filepath.Join(dir, "program")
	run(t, nil, "gcc", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-I", ".", "-o", program,
		source, "-L", dir, "-lpstorage", "-Wl,-rpath,"+dir)
	return program
}

// startCluster starts a cluster and returns the environment of its users.
func startCluster(t *testing.T, dir string) []string {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	run(t, []string{"CGO_ENABLED=0"}, "go", "build", "-o", bin+"/", "pstorage/cmd/pstorage",
		"pstorage/cmd/pstorage-csd", "pstorage/cmd/pstorage-mdsd", "pstorage/cmd/pstorage-mount")
	home := filepath.Join(dir, "cluster")
	c, err := perf.StartCluster(context.Background(), perf.ClusterOptions{
		Binary: filepath.Join(bin, "pstorage"), Dir: home, CS: 3,
		Args: []string{"--no-mount", "--log-size", "64M"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return []string{"PSTORAGE_ETC=" + filepath.Join(home, "etc")}
}

// TestExample builds the library and the example as a user would, and runs it on a cluster.
func TestExample(t *testing.T) {
	needs(t, "gcc", "go")
	dir := t.TempDir()
	program := build(t, dir, "example/example.c")
	env := startCluster(t, dir)
	for range 2 { // the second time the file is there
		if out := run(t, env, program, "dev", "/example"); !strings.HasPrefix(out, "ok ") {
			t.Errorf("it says %q", out)
		}
	}
	cmd := exec.Command(program, "nosuch", "/example")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "nosuch") {
		t.Errorf("a cluster that isn't there: %v, %s", err, out)
	}
}

// TestMixedStack: a crash in C, below Go, shows the C function with its file and line.
func TestMixedStack(t *testing.T) {
	needs(t, "gcc", "go")
	dir := t.TempDir()
	source := filepath.Join(dir, "crash.c")
	err := os.WriteFile(source, []byte(`#include <stdio.h>
#include <unistd.h>
#include "pstorage.h"
__attribute__((noinline)) static void crash_here(ps_op *op) {
    *(volatile int *)op->user = 1;
}
int main(void) {
    ps_cluster *cluster;
    ps_file *file;
    if (ps_open("dev", NULL, 10000, &cluster) ||
        ps_file_open(cluster, "/crash", PS_CREATE, 4096, &file)) {
        fprintf(stderr, "%s\n", ps_error());
        return 1;
    }
    ps_op op = {.kind = PS_FLUSH, .done = crash_here};
    if (ps_submit(file, &op) == 0) pause();
    return 1;
}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	program := build(t, dir, source)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append(append(os.Environ(), startCluster(t, dir)...), "GOTRACEBACK=crash")
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		t.Fatalf("it didn't crash: %v\n%s", err, out)
	}
	for _, want := range []string{"crash_here", "crash.c:5", "psCallDone", "(*request).end"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %s in the stack:\n%.4000s", want, out)
		}
	}
}

// cProgram builds the library and a program that opens the cluster, with the directory that it is
// given, and then does what body says. Before it may come functions.
func cProgram(t *testing.T, dir, body string, functions ...string) string {
	t.Helper()
	source := filepath.Join(dir, "test.c")
	text := `#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "pstorage.h"
#define CHECK(call, want) do { \
    long long rc_ = (call); \
    if (rc_ != (want)) { \
        printf("%s: %lld, not %lld (%s)\n", #call, rc_, (long long)(want), ps_error()); \
        return 1; \
    } } while (0)
` + strings.Join(functions, "") + `int main(int argc, char **argv) {
    ps_cluster *cluster;
    CHECK(ps_open("dev", argc > 1 ? argv[1] : NULL, 10000, &cluster), 0);
` + body + `    return 0;
}
`
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return build(t, dir, source)
}

// TestKeepBS: a program keeps bs.list up to date, so that it still finds the cluster when the
// metadata servers were replaced.
func TestKeepBS(t *testing.T) {
	needs(t, "gcc", "go")
	dir := t.TempDir()
	program := cProgram(t, dir, `    usleep(2000000);
    CHECK(ps_close(cluster), 0);
`)
	env := startCluster(t, dir)
	// Another directory than the cluster's daemons', which do the same in theirs.
	etc := filepath.Join(dir, "etc")
	if err := os.CopyFS(etc, os.DirFS(filepath.Join(dir, "cluster/etc"))); err != nil {
		t.Fatal(err)
	}
	conf, err := cluster.At(etc, "dev")
	if err != nil {
		t.Fatal(err)
	}
	want := conf.BSOrNone()
	err = conf.SaveBS(append([]string{"127.0.0.1:1"}, want...))
	if err == nil {
		err = os.Chmod(conf.KeyPath(), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, env, program, etc)
	if got := conf.BSOrNone(); !slices.Equal(got, want) {
		t.Errorf("bs.list names %v, not %v", got, want)
	}
}

// TestCloseWhileDone: a file isn't closed while a done function runs, which starts an operation.
func TestCloseWhileDone(t *testing.T) {
	needs(t, "gcc", "go")
	dir := t.TempDir()
	program := cProgram(t, dir, `    ps_op op = {.kind = PS_FLUSH, .done = on_done};
    CHECK(ps_file_open(cluster, "/close", PS_CREATE, 4096, &file), 0);
    CHECK(ps_submit(file, &op), 0);
    while (!calls) usleep(100);
    closing = 1;
    int rc;
    while ((rc = ps_file_close(file)) == -EBUSY) usleep(100);
    CHECK(rc, 0);
    CHECK(gone, 0);
    CHECK(again, 0);
    CHECK(calls, 2);
    CHECK(returned, 2);
    CHECK(ps_close(cluster), 0);
`, `static ps_file *file;
static _Atomic int calls, closing, gone, again = 1, returned;
static void on_done(ps_op *op) {
    if (++calls == 1) {
        for (int i = 0; i < 200 || !closing; i++) { /* time for it to be closed */
            if ((gone = ps_size(file) < 0)) break;
            usleep(1000);
        }
        again = ps_submit(file, op);
    }
    returned++;
}
`)
	run(t, startCluster(t, dir), program)
}

// TestClose: ps_close waits for operations that ended and weren't handed out; a handle that was
// closed is refused.
func TestClose(t *testing.T) {
	needs(t, "gcc", "go")
	dir := t.TempDir()
	program := cProgram(t, dir, `    ps_file *file;
    ps_op op = {.kind = PS_FLUSH}, *ended;
    CHECK(ps_file_open(cluster, "/close", PS_CREATE, 4096, &file), 0);
    CHECK(ps_submit(file, &op), 0);
    struct pollfd p = {.fd = ps_poll_fd(cluster), .events = POLLIN};
    CHECK(poll(&p, 1, 10000), 1);
    CHECK(ps_file_close(file), 0);
    CHECK(ps_submit(file, &op), -EINVAL);
    CHECK(ps_close(cluster), -EBUSY);
    CHECK(ps_poll(cluster, &ended, 1, 0), 1);
    CHECK(ended == &op && op.result == 0, 1);
    CHECK(ps_close(cluster), 0);
    CHECK(ps_close(cluster), -EINVAL);
    CHECK(ps_poll(cluster, &ended, 1, 0), -EINVAL);
`)
	run(t, startCluster(t, dir), program)
}
