package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pstorage/perf/emulate"
)

// TestEngine runs two short rows with real servers: the figures are there and make sense, and
// nothing is left behind.
func TestEngine(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute: not in -short")
	}
	if err := emulate.Available(); err != nil {
		t.Skip(err)
	}
	bin, dir := t.TempDir(), t.TempDir()
	build := exec.Command("go", "build", "-o", bin, "pstorage/cmd/pstorage",
		"pstorage/cmd/pstorage-mdsd", "pstorage/cmd/pstorage-csd", "pstorage/cmd/pstorage-perf")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cmd := exec.Command(filepath.Join(bin, "pstorage-perf"), "engine", "--rows", "hddread,replay",
		"--dir", dir, "--set", "16M", "--log", "128M", "--replay-log", "128M", "--rounds", "1",
		"--seconds", "1", "--fill", "5", "--json")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var doc struct {
		Reads  float64 `json:"hdd_coldread_q32"`
		Replay float64 `json:"replay"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	// A busy machine makes figures worse; nothing makes an HDD of 200 operations serve many more.
	if doc.Reads <= 0 || doc.Reads > 3 || doc.Replay <= 0 || doc.Replay > 60 {
		t.Errorf("implausible: %s", out)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
