package perf

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// script writes a stand-in for pstorage.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pstorage")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestClusterStartStop(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	binary := script(t, `sleep 1000 & echo "$@"; echo "The cluster is ready."
trap 'kill $!; exit' TERM
wait`)
	c, err := StartCluster(ctx, ClusterOptions{Binary: binary, Dir: t.TempDir(), CS: 3})
	if err != nil {
		t.Fatal(err)
	}
	pids, err := c.PIDs()
	if err != nil || len(pids) != 2 {
		t.Errorf("processes %v, %v; want the script and its sleep", pids, err)
	}
	if !strings.Contains(c.lastLines(), "--cs 3") {
		t.Errorf("output %q", c.lastLines())
	}
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pids[0]))); err == nil {
		t.Errorf("process %d still runs", pids[0])
	}
}

func TestClusterThatFails(t *testing.T) {
	_, err := StartCluster(context.Background(), ClusterOptions{
		Binary: script(t, "echo no disk here >&2; exit 1"), Dir: t.TempDir(), CS: 3})
	if err == nil || !strings.Contains(err.Error(), "no disk here") {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err = StartCluster(ctx, ClusterOptions{
		Binary: script(t, "exec sleep 1000"), Dir: t.TempDir(), CS: 3})
	if err == nil {
		t.Error("a cluster that never gets ready is accepted")
	}
}
