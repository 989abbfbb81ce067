package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestManuals has every program write its manual pages, and man(1) read them.
func TestManuals(t *testing.T) {
	n := newNode(t)
	dir := n.path("man")
	for _, program := range []string{"pstorage", "pstorage-mdsd", "pstorage-csd", "pstorage-mount"} {
		if r := n.run("", program, "--man-pages", dir); r.status != 0 {
			t.Fatalf("%s: %s", program, r.stderr)
		}
	}
	for _, name := range []string{"pstorage.1", "pstorage-make-cs.1", "pstorage-export-nbd.1",
		"pstorage-report.1", "pstorage-completion.1", "pstorage-mdsd.8", "pstorage-csd.8",
		"pstorage-mount.8"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	pages, _ := filepath.Glob(filepath.Join(dir, "*.[18]"))
	files, _ := filepath.Glob("../packaging/man/*.[58]")
	if len(files) == 0 {
		t.Error("no manual pages of files")
	}
	if mandoc, err := exec.LookPath("mandoc"); err == nil {
		args := append([]string{"-Tlint", "-Wwarning"}, slices.Concat(pages, files)...)
		if out, err := exec.Command(mandoc, args...).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("mandoc -Tlint: %v\n%s", err, out)
		}
	} else {
		t.Log("mandoc isn't installed: only man looks at the pages")
	}
	man, err := exec.LookPath("man")
	if err != nil {
		t.Skip("man isn't installed: the pages were written, and not looked at")
	}
	lint := func(page string) string {
		cmd := exec.Command(man, "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANROFFSEQ=", "MANWIDTH=80")
		var errs strings.Builder
		cmd.Stderr = &errs
		if err := cmd.Run(); err != nil {
			return err.Error() + errs.String()
		}
		return errs.String()
	}
	bad := n.path("bad.1")
	if err := os.WriteFile(bad, []byte(".TH A 1\n.nosuchmacro\nx\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if lint(bad) == "" {
		t.Skip("this man doesn't warn of a bad page")
	}
	for _, page := range slices.Concat(pages, files) {
		if says := lint(page); says != "" {
			t.Errorf("%s: %s", filepath.Base(page), says)
		}
	}
}

// TestManualsOfFiles: the manual pages that are written by hand have all files, and all options.
func TestManualsOfFiles(t *testing.T) {
	for page, words := range map[string][]string{
		"pstorage-files.5": {"auth.key", "bs.list", "mds.list", "cs.list", "discovery", "location"},
		"mount.fuse.pstorage.8": {"ro", "allow_other", "noallow_other", "fsname=", "fuse-uring=", "log=",
			"metrics=", "wait="},
	} {
		text, err := os.ReadFile("../packaging/man/" + page)
		if err != nil {
			t.Fatal(err)
		}
		names := "" // of what has a paragraph of its own
		for l := range strings.Lines(strings.ReplaceAll(string(text), `\-`, "-")) {
			if strings.HasPrefix(l, ".B ") || strings.HasPrefix(l, ".BI ") {
				names += l
			}
		}
		for _, word := range words {
			if !strings.Contains(names, word) {
				t.Errorf("%s has nothing about %s", page, word)
			}
		}
	}
}

// TestCompletion: the scripts are good ones for their shells, and bash completes with it.
func TestCompletion(t *testing.T) {
	n := newNode(t)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script := n.ok("", "completion", shell)
		if len(script) < 1000 || !strings.Contains(script, "pstorage") {
			t.Errorf("%s: %q", shell, script)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("%s isn't installed: its script isn't looked at", shell)
			continue
		}
		file := n.path("completion." + shell)
		if err := os.WriteFile(file, []byte(script), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path, "-n", file).CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}
	n.refused("", 2, []string{"bash", "zsh", "fish"}, "completion")
	n.refused("", 2, []string{"tcsh"}, "completion", "tcsh")
	conf := filepath.Join(n.etc, "clusters", "prod")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(conf, "auth.key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"__complete rep", "report"}, {"__complete export n", "nbd"}, {"__complete -c p", "prod"},
		{"__complete stat --out", "--output"}, {"__complete completion z", "zsh"},
	} {
		if out := n.ok("", strings.Fields(c.args)...); !strings.HasPrefix(out, c.want) {
			t.Errorf("%s: %q, want %s", c.args, out, c.want)
		}
	}
}
