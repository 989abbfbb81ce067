package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var packages = []string{"pstorage-ctl", "pstorage-metadata-server", "pstorage-chunk-server",
	"pstorage-client", "pstorage-perf"}

// buildPrograms makes what `make man` does: programs and manual pages.
func buildPrograms(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	programs := []string{"pstorage", "pstorage-mdsd", "pstorage-csd", "pstorage-mount"}
	args := []string{"build", "-o", bin}
	for _, p := range programs {
		args = append(args, "pstorage/cmd/"+p)
	}
	args = append(args, "pstorage/cmd/pstorage-perf") // it has no manual page
	build := exec.Command("go", args...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, p := range programs {
		cmd := exec.Command(filepath.Join(bin, p), "--man-pages", filepath.Join(bin, "man"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	pages, _ := filepath.Glob("man/*")
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err == nil {
			err = os.WriteFile(filepath.Join(bin, "man", filepath.Base(page)), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return bin
}

// debRoot is a directory that dpkg takes for the root of a machine.
type debRoot struct {
	t   *testing.T
	dir string
}

func newDebRoot(t *testing.T) *debRoot {
	r := &debRoot{t, t.TempDir()}
	admin := filepath.Join(r.dir, "var/lib/dpkg")
	for _, dir := range []string{"info", "updates", "triggers"} {
		if err := os.MkdirAll(filepath.Join(admin, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// What the packages need of the distribution is installed already.
	status := "Package: fuse3\nStatus: install ok installed\nVersion: 3.14\nArchitecture: all\n" +
		"Maintainer: x <x@localhost>\nDescription: x\n"
	if err := os.WriteFile(filepath.Join(admin, "status"), []byte(status), 0o644); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *debRoot) dpkg(args ...string) {
	r.t.Helper()
	cmd := exec.Command("dpkg", append([]string{"--root=" + r.dir, "--force-script-chrootless",
		"--log=/dev/null"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("dpkg %v: %v\n%s", args, err, out)
	}
}

func (r *debRoot) path(name string) string { return filepath.Join(r.dir, name) }

func (r *debRoot) has(name string) bool {
	_, err := os.Lstat(r.path(name))
	return err == nil
}

// TestDebianPackages installs all packages, upgrades and removes them, in a root of their own.
func TestDebianPackages(t *testing.T) {
	for _, program := range []string{"dpkg", "dpkg-deb", "gzip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " isn't installed")
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("dpkg needs root")
	}
	bin := buildPrograms(t)
	debs := func(version string) (files []string) {
		t.Helper()
		dir := t.TempDir()
		if out, err := exec.Command("deb/build", bin, dir, version).CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
		for _, p := range packages {
			found, _ := filepath.Glob(filepath.Join(dir, p+"_"+version+"_*.deb"))
			if len(found) != 1 {
				t.Fatalf("%s: %v", p, found)
			}
			files = append(files, found[0])
		}
		return files
	}
	r := newDebRoot(t)
	r.dpkg(append([]string{"-i"}, debs("1.0")...)...)
	installed := []string{"usr/bin/pstorage", "usr/bin/pstorage-mdsd", "usr/bin/pstorage-csd",
		"usr/bin/pstorage-mount", "usr/sbin/mount.fuse.pstorage",
		"usr/lib/systemd/system/pstorage-mdsd@.service", "usr/lib/systemd/system/pstorage-csd@.service",
		"usr/lib/systemd/system/pstorage-export-nbd@.service", "usr/share/man/man1/pstorage.1.gz",
		"usr/share/man/man1/pstorage-make-cs.1.gz", "usr/share/man/man5/pstorage-files.5.gz",
		"usr/share/man/man8/mount.fuse.pstorage.8.gz",
		"usr/share/bash-completion/completions/pstorage", "usr/share/doc/pstorage-ctl/copyright",
		"usr/share/pstorage/monitoring/alerts.yml",
		"usr/share/pstorage/schema/stat.json", "usr/share/doc/pstorage-ctl/getting-started.md",
		"usr/bin/pstorage-perf", "usr/share/pstorage/jobs/randread-q32.fio"}
	for _, name := range installed {
		if !r.has(name) {
			t.Errorf("%s isn't installed", name)
		}
	}
	if out, err := exec.Command(r.path("usr/bin/pstorage"), "version").Output(); err != nil ||
		!strings.HasPrefix(string(out), "pstorage ") {
		t.Errorf("the installed program: %q, %v", out, err)
	}
	// The helper is a mount program under that name.
	helper := exec.Command(r.path("usr/sbin/mount.fuse.pstorage"), "nonsense", "/pcs")
	out, err := helper.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "pstorage://CLUSTER") {
		t.Errorf("the helper says %q, %v", out, err)
	}
	r.dpkg("--verify") // the checksums of all files

	key := r.path("etc/pstorage/clusters/c1/auth.key")
	if err := os.MkdirAll(filepath.Dir(key), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.dpkg(append([]string{"-i"}, debs("1.1")...)...)
	status, err := os.ReadFile(r.path("var/lib/dpkg/status"))
	if err != nil || strings.Count(string(status), "Version: 1.1\n") != len(packages) {
		t.Errorf("after the upgrade: %v\n%s", err, status)
	}
	r.dpkg(append([]string{"--purge"}, packages...)...)
	for _, name := range installed {
		if r.has(name) {
			t.Errorf("%s is left after a purge", name)
		}
	}
	if !r.has("etc/pstorage/clusters/c1/auth.key") {
		t.Error("a purge deleted a key")
	}
}

// TestRPMPackages installs, upgrades and removes the RPM packages in a root of their own. Scripts
// aren't run there: it has no shell. What they say is looked at.
func TestRPMPackages(t *testing.T) {
	for _, program := range []string{"rpm", "rpmbuild"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " isn't installed (on Debian: apt-get install rpm)")
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("rpm --root needs root")
	}
	bin, root := buildPrograms(t), t.TempDir()
	rpm := func(args ...string) string {
		t.Helper()
		if args[0] != "-qp" && args[0] != "-qa" {
			args = append([]string{"--nodeps", "--noscripts"}, args...)
		}
		args = append([]string{"--root", root}, args...)
		cmd := exec.Command("rpm", args...)
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("rpm %v: %v\n%s%s", args, err, out, errs.String())
		}
		return string(out)
	}
	build := func(version string) []string {
		t.Helper()
		dir := t.TempDir()
		if out, err := exec.Command("rpm/build", bin, dir, version).CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
		files, _ := filepath.Glob(filepath.Join(dir, "*.rpm"))
		if len(files) != len(packages) {
			t.Fatalf("made %v", files)
		}
		return files
	}
	first := build("1.0")
	rpm(append([]string{"-i", "--force-debian"}, first...)...)
	installed := []string{"usr/bin/pstorage", "usr/bin/pstorage-csd", "usr/sbin/mount.fuse.pstorage",
		"usr/lib/systemd/system/pstorage-mdsd@.service", "usr/share/man/man1/pstorage.1.gz",
		"usr/share/zsh/site-functions/_pstorage", "usr/share/pstorage/schema/stat.json",
		"usr/share/doc/pstorage-ctl/getting-started.md", "usr/bin/pstorage-perf",
		"usr/share/pstorage/jobs/randread-q32.fio"}
	for _, name := range installed {
		if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
	for _, file := range first {
		scripts := rpm("-qp", "--scripts", file)
		noUnits := strings.Contains(file, "pstorage-ctl-") || strings.Contains(file, "pstorage-perf-")
		if noUnits == strings.Contains(scripts, "systemctl stop") {
			t.Errorf("%s: scripts %q", filepath.Base(file), scripts)
		}
	}
	rpm(append([]string{"-U", "--force-debian"}, build("1.1")...)...)
	if list := rpm("-qa"); strings.Count(list, "-1.1-1") != len(packages) {
		t.Errorf("after the upgrade: %s", list)
	}
	rpm(append([]string{"-e"}, packages...)...)
	for _, name := range installed {
		if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
}
