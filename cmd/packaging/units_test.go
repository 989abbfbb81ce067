package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestUnits has systemd itself check the units, with programs where they look for them.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze isn't installed")
	}
	units, err := filepath.Glob("systemd/*@.service")
	if err != nil || len(units) != 3 {
		t.Fatalf("units: %v, %v", units, err)
	}
	dir := t.TempDir()
	var instances []string
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		// The programs aren't installed here; any program will do for a check of the rest.
		for _, program := range []string{"pstorage-mdsd", "pstorage-csd", "pstorage"} {
			text = []byte(strings.ReplaceAll(string(text), "=/usr/bin/"+program+" ", "=/bin/true "))
		}
		name := strings.Replace(filepath.Base(unit), "@", "@prod", 1)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		instances = append(instances, path)
	}
	cmd := exec.Command(analyze, append([]string{"verify", "--man=no"}, instances...)...)
	out, err := cmd.CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// A canary: a wrong line is found.
	bad := filepath.Join(dir, "bad.service")
	text := "[Service]\nExecStart=/bin/true\nWatchDogSec=60s\n"
	if err := os.WriteFile(bad, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command(analyze, "verify", "--man=no", bad).CombinedOutput(); len(out) == 0 {
		t.Error("a wrong line isn't found")
	}
}

// TestUnitsNotify: readiness and the watchdog are the daemon's own word.
func TestUnitsNotify(t *testing.T) {
	units, _ := filepath.Glob("systemd/*@.service")
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(text)) {
			if status, ok := strings.CutPrefix(l, "RestartPreventExitStatus="); ok &&
				slices.Contains(strings.Fields(status), "2") {
				t.Errorf("%s: one that panics, with status 2, isn't started again", unit)
			}
		}
		for _, line := range []string{"Type=notify", "NotifyAccess=main", "WatchdogSec=60s",
			"Restart=on-failure", "NoNewPrivileges=yes", "WantedBy=multi-user.target"} {
			if !strings.Contains(string(text), "\n"+line+"\n") {
				t.Errorf("%s: no line %s", unit, line)
			}
		}
	}
}
