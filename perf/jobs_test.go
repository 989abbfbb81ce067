package perf

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// parseJob reads a job file of fio with one job: the options of both its sections, and its name.
func parseJob(t *testing.T, path string) (name string, options map[string]string) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	options = map[string]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch key, value, found := strings.Cut(line, "="); {
		case line == "" || strings.HasPrefix(line, ";"):
		case strings.HasPrefix(line, "["):
			name = strings.Trim(line, "[]")
		case !found:
			t.Errorf("%s: %q isn't an option with a value", path, line)
		case options[key] != "":
			t.Errorf("%s: %s is there twice", path, key)
		default:
			options[key] = value
		}
	}
	return name, options
}

// argOptions are fio's arguments as options of a job.
func argOptions(args []string) map[string]string {
	options := map[string]string{}
	for _, arg := range args {
		key, value, found := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !found {
			value = "1" // a switch
		}
		options[key] = value
	}
	return options
}

// TestJobs: the job files that people run are what the harness runs: for each workload on raw disks
// there is one, with the options that fioArgs gives, and there are no others but those that verify
// and those of libpstorage's engine.
func TestJobs(t *testing.T) {
	files, err := filepath.Glob("jobs/*.fio")
	if err != nil {
		t.Fatal(err)
	}
	const size, each = 1 << 30, 10 * time.Second
	jobs := map[string]Workload{}
	for _, row := range Rows(each, size, Fronts{}) {
		w := row.Ours.Workload
		name := w.RW
		if w.BlockSize == 1<<20 {
			name += "-1m"
		}
		jobs[name+"-q"+argOptions(fioArgs(w, "", ""))["iodepth"]] = w
	}
	for _, path := range files {
		base := strings.TrimSuffix(filepath.Base(path), ".fio")
		if strings.HasPrefix(base, "libpstorage-") || strings.HasPrefix(base, "verify-") {
			continue
		}
		name, got := parseJob(t, path)
		w, known := jobs[base]
		if !known || name != base {
			t.Errorf("%s: job %q; the harness has no such workload", path, name)
			continue
		}
		delete(jobs, base)
		want := argOptions(fioArgs(w, "perf.data", "io_uring"))
		for _, of := range []string{"name", "output-format"} { // a job's name is its section's
			delete(want, of)
		}
		if got["directory"] != "${DIR}" || got["group_reporting"] != "1" {
			t.Errorf("%s: directory %q, group_reporting %q", path, got["directory"],
				got["group_reporting"])
		}
		delete(got, "directory")
		delete(got, "group_reporting") // for people
		for key, forms := range map[string]map[string]string{"bs": {"4k": "4096", "1m": "1048576"},
			"size": {"1g": "1073741824"}, "runtime": {"10": "10000ms"}} {
			if form := forms[got[key]]; form != "" {
				got[key] = form
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, the harness has %v", path, got, want)
		}
	}
	if len(jobs) > 0 {
		t.Errorf("no job files for %q", slices.Sorted(maps.Keys(jobs)))
	}
}
