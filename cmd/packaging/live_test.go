package packaging

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// container is Debian with systemd as its first process, in namespaces of its own.
type container struct {
	t    *testing.T
	tree string
	init int // process
}

// debianTree makes a Debian system in a new directory, or copies the one that
// PSTORAGE_SYSTEMD_TREE names.
func debianTree(t *testing.T) string {
	t.Helper()
	have := os.Getenv("PSTORAGE_SYSTEMD_TREE")
	if have == "" && os.Getenv("PSTORAGE_LONG") == "" {
		t.Skip("it installs Debian; with PSTORAGE_LONG=1, as in make test-long, it does")
	}
	for _, program := range []string{"systemd-nspawn", "debootstrap", "nsenter", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " isn't installed (apt-get install systemd-container debootstrap)")
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "pstorage-live-") // it isn't to lie on a tmpfs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	tree := filepath.Join(dir, "tree")
	cmd := exec.Command("debootstrap", "--variant=minbase",
		"--include=systemd,systemd-sysv,dbus,fuse3,procps,iproute2", "stable", tree)
	if have != "" {
		cmd = exec.Command("cp", "-a", have, tree)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("no Debian to be had: %v\n%s", err, tailOf(string(out)))
	}
	return tree
}

func tailOf(text string) string { return text[max(0, len(text)-1000):] }

// boot starts the container and returns when its systemd has started everything.
func boot(t *testing.T, tree string) *container {
	t.Helper()
	cmd := exec.Command("systemd-nspawn", "-b", "-D", tree, "--register=no", "--keep-unit",
		"--private-network", "--console=pipe", "-M", "pstorage-live", "--bind=/dev/fuse",
		"--system-call-filter=io_uring_setup io_uring_enter io_uring_register")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &container{t: t, tree: tree}
	t.Cleanup(func() {
		if c.init != 0 {
			_ = syscall.Kill(c.init, syscall.SIGKILL) // the first process: all others end with it
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	state := ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * tick) {
		if c.init = firstProcess(cmd.Process.Pid); c.init == 0 {
			continue
		}
		out, _ := c.command("systemctl is-system-running").CombinedOutput()
		if state = strings.TrimSpace(string(out)); state == "running" || state == "degraded" {
			return c
		}
	}
	t.Skipf("systemd doesn't come up in a container here: %q\n%s", state, tailOf(said.String()))
	return nil
}

// firstProcess is the systemd that nspawn has started, 0: not yet. There are helpers before it.
func firstProcess(nspawn int) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", nspawn, nspawn))
	for _, field := range strings.Fields(string(text)) {
		comm, _ := os.ReadFile("/proc/" + field + "/comm")
		if pid, err := strconv.Atoi(field); err == nil && string(comm) == "systemd\n" {
			return pid
		}
	}
	return 0
}

func (c *container) command(script string) *exec.Cmd {
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(c.init), "-a", "env", "-i", "HOME=/root",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "bash", "-eo", "pipefail", "-c", script)
	cmd.Dir = "/"
	return cmd
}

// run runs a script in the container, which must succeed, and returns what it printed.
func (c *container) run(script string) string {
	c.t.Helper()
	out, err := c.command(script).CombinedOutput()
	if err != nil {
		log, _ := c.command("journalctl -b --no-pager -n 60").CombinedOutput()
		c.t.Fatalf("%s: %v\n%s\n%s", script, err, out, log)
	}
	return strings.TrimSpace(string(out))
}

// becomes waits until a script prints want.
func (c *container) becomes(script, want string) {
	c.t.Helper()
	got := ""
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(tick) {
		out, _ := c.command(script).CombinedOutput()
		if got = strings.TrimSpace(string(out)); got == want {
			return
		}
	}
	log, _ := c.command("journalctl -b --no-pager -n 60").CombinedOutput()
	c.t.Fatalf("%s says %q, not %q\n%s", script, got, want, log)
}

const tick = 50 * time.Millisecond

const healthyNow = "pstorage stat | head -1"

// TestUnderSystemd installs the packages on Debian, and has systemd run the units: start, restart,
// a killed and a hanging daemon, an fstab line, a refusal, an upgrade under way, removal.
func TestUnderSystemd(t *testing.T) {
	if testing.Short() {
		t.Skip("it boots a container: make test-long does")
	}
	tree := debianTree(t)
	bin := buildPrograms(t)
	for _, version := range []string{"1.0", "1.1"} {
		out, err := exec.Command("deb/build", bin, filepath.Join(tree, "root", version), version).
			CombinedOutput()
		if err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	c := boot(t, tree)
	c.run("rm -rf /etc/pstorage /pstorage; dpkg -i /root/1.0/*.deb")
	c.run("systemd-analyze verify --man=no pstorage-{mdsd,csd,export-nbd}@prod.service")
	c.run(`ip link set lo up
pstorage -c prod make-mds -I -a 127.0.0.1 -r /pstorage/mds -P <<<"correct horse battery"
systemctl enable --now pstorage-mdsd@prod
for i in 1 2; do pstorage make-cs -r /pstorage/cs$i -s 64M --capacity 1G; done
systemctl enable --now pstorage-csd@prod
pstorage set-attr / replicas=2:1
mkdir /pcs; echo "pstorage://prod /pcs fuse.pstorage _netdev 0 0" >>/etc/fstab
systemctl daemon-reload; mount /pcs
dd if=/dev/urandom of=/pcs/data bs=1M count=16 conv=fsync status=none
sha256sum /pcs/data >/root/sum`)
	c.becomes(healthyNow, "Cluster prod: healthy")
	intact := func() {
		t.Helper()
		c.becomes(healthyNow, "Cluster prod: healthy")
		c.run("sha256sum -c --quiet /root/sum")
		c.run("dd if=/dev/zero of=/pcs/more bs=64k count=4 conv=fsync status=none")
	}
	intact()
	if unit := c.run("systemctl show -P What,FragmentPath pcs.mount"); !strings.Contains(unit,
		"pstorage://prod") {
		t.Errorf("the fstab line gives the mount unit %q", unit)
	}
	c.restarts(intact)
	c.hangs(intact)
	c.refuses(intact)

	const processes = "systemctl show -P MainPID pstorage-csd@prod pstorage-mdsd@prod"
	before := c.run(processes)
	c.run("dpkg -i /root/1.1/*.deb")
	if after := c.run(processes); after != before {
		t.Errorf("an upgrade restarted something: %s, %s", before, after)
	}
	intact()
	c.run("systemctl restart pstorage-mdsd@prod pstorage-csd@prod")
	intact()
	c.run("umount /pcs; dpkg -r " + strings.Join(packages, " "))
	c.run("! pgrep pstorage-")
	c.run("[ -e /etc/pstorage/clusters/prod/auth.key ] && [ -e /pstorage/cs1/store ]")
}

// restarts restarts the services, and kills them.
func (c *container) restarts(intact func()) {
	c.t.Helper()
	for _, unit := range []string{"pstorage-mdsd@prod", "pstorage-csd@prod"} {
		began := time.Now()
		c.run("systemctl restart " + unit)
		c.t.Logf("restart of %s: %v", unit, time.Since(began).Round(time.Millisecond))
		intact()
		c.run("systemctl kill -s KILL --kill-whom=main " + unit)
		c.becomes("systemctl show -P NRestarts "+unit, "1")
		c.becomes("systemctl is-active "+unit, "active")
		intact()
	}
	c.run("systemctl reload pstorage-csd@prod")
	intact()
}

// hangs stops a daemon with SIGSTOP: the watchdog ends it, and it is started again.
func (c *container) hangs(intact func()) {
	c.t.Helper()
	c.run(`for u in mdsd csd; do d=/etc/systemd/system/pstorage-$u@.service.d; mkdir -p $d
printf '[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n' >$d/test.conf; done
systemctl daemon-reload; systemctl restart pstorage-mdsd@prod pstorage-csd@prod`)
	for _, unit := range []string{"pstorage-mdsd@prod", "pstorage-csd@prod"} {
		old := c.run("systemctl show -P MainPID " + unit)
		c.run("systemctl kill -s STOP --kill-whom=main " + unit)
		c.becomes("journalctl -b --no-pager -u "+unit+" | grep -c 'Watchdog timeout'", "1")
		c.becomes("[ $(systemctl show -P MainPID "+unit+") != "+old+" ] && systemctl is-active "+unit,
			"active")
		intact()
	}
	c.run(`rm -r /etc/systemd/system/pstorage-*.d; systemctl daemon-reload
systemctl restart pstorage-mdsd@prod pstorage-csd@prod`)
	intact()
}

// refuses damages a metadata server's directory: it isn't started again and again. One that is
// missing may be on a disk that isn't mounted yet: that heals by itself.
func (c *container) refuses(intact func()) {
	c.t.Helper()
	c.run(`systemctl stop pstorage-mdsd@prod
cp /pstorage/mds/identity.json /root; echo damaged >/pstorage/mds/identity.json
! systemctl start pstorage-mdsd@prod`)
	c.becomes("for p in ActiveState ExecMainStatus NRestarts; do "+
		"systemctl show -P $p pstorage-mdsd@prod; done", "failed\n78\n0")
	c.run(`cp /root/identity.json /pstorage/mds
systemctl reset-failed pstorage-mdsd@prod; systemctl start pstorage-mdsd@prod`)
	intact()
	c.run(`systemctl stop pstorage-mdsd@prod; mv /pstorage/mds /pstorage/away; mkdir /pstorage/mds
! systemctl start pstorage-mdsd@prod`)
	c.becomes("[ $(systemctl show -P NRestarts pstorage-mdsd@prod) -ge 2 ] && echo again", "again")
	c.run(`rmdir /pstorage/mds; mv /pstorage/away /pstorage/mds`)
	c.becomes("systemctl is-active pstorage-mdsd@prod", "active")
	intact()
}
