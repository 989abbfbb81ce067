package packaging

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pstorage/perf/netlab"
)

// block is one fenced block of the guide, and the nodes it is typed on.
type block struct {
	nodes []string
	text  string
	line  int
}

// guideBlocks finds the blocks ```sh NODE... of a document.
func guideBlocks(text string) (list []block) {
	var b *block
	for i, line := range strings.Split(text, "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && b != nil:
			list, b = append(list, *b), nil
		case fence:
			b = &block{line: i + 2}
			if words := strings.Fields(info); len(words) > 1 && words[0] == "sh" {
				b.nodes = words[1:]
			}
		case b != nil:
			b.text += line + "\n"
		}
	}
	return list
}

// machine is a node of the lab: a shell with a network, a host name and a root directory of its
// own, over which everything that the guide changes disappears at the end.
type machine struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	root  string
}

// machineScript makes the root directory of a machine out of the one of this computer, with what
// is written to it in memory, and waits for commands. Arguments: directory, host name, packages.
const machineScript = `set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o lowerdir=/,upperdir="$1/upper",workdir="$1/work" none "$1/root"
for d in proc sys dev; do mount --rbind "/$d" "$1/root/$d"; done
mount -t tmpfs none "$1/root/run"; mount -t tmpfs none "$1/root/tmp"
mount -t tmpfs none "$1/root/var/tmp"
hostname "$2"
mkdir -p "$1/root/root/packages" "$1/root/usr/local/sbin"
cp "$3"/*.deb "$1/root/root/packages"
cp "$4" "$1/root/usr/local/sbin/systemctl"; cp "$5" "$1/root/usr/local/sbin/poweroff"
: >"$1/root/etc/fstab"
exec env -i HOME=/root LC_ALL=C.UTF-8 \
  PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin chroot "$1/root" /bin/bash -c '
cd /root/packages; set -eo pipefail; exec 2>&1
while IFS= read -r file; do
  . "$file" </dev/null
  echo "== end of $file"
done'
`

// systemctlScript stands for systemd, which doesn't run in a network namespace: it starts what the
// installed unit says, and waits until that is ready.
const systemctlScript = `#!/bin/bash
set -eo pipefail
[[ $1 == enable && $2 == --now ]] || { echo "not for this stand-in: systemctl $*" >&2; exit 1; }
name=${3%@*} instance=${3#*@}
unit=/usr/lib/systemd/system/$name@.service
command=$(sed -n 's/^ExecStart=//p' "$unit" | sed "s/%i/$instance/g; s/ \$[A-Z_]*//g")
log=/var/log/$name.log
setsid $command >"$log" 2>&1 </dev/null &
for ((i = 0; i < 600; i++)); do
  grep -qs "ready on" "$log" && exit 0
  sleep 0.05
done
cat "$log" >&2
exit 1
`

// poweroffScript ends all processes of the machine at once, itself and the shell last.
const poweroffScript = `#!/bin/bash
net=$(readlink /proc/$$/ns/net)
for d in /proc/[0-9]*; do
  p=${d#/proc/}
  [[ $p == $$ || $p == $PPID || $(readlink "$d/ns/net") != "$net" ]] || kill -9 "$p"
done
kill -9 $PPID
`

func startMachine(t *testing.T, lab *netlab.Lab, name string, files ...string) *machine {
	t.Helper()
	n, err := lab.Add(name)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, name: name, lines: make(chan string, 1000),
		root: filepath.Join(lab.Dir(), name)}
	if err := os.Mkdir(m.root, 0o755); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--mount", "--uts", "--propagation", "private", "bash", "-c",
		machineScript, "machine", m.root, name}, files...)
	m.cmd = exec.Command("unshare", args...)
	if m.in, err = m.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.cmd.Stderr = os.Stderr
	if err := n.Start(m.cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			m.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		m.in.Close()
		_ = m.cmd.Process.Kill() // it may have ended
		_ = m.cmd.Wait()
	})
	return m
}

// run runs commands in the machine's shell and returns what they print. gone: the machine ends by
// them.
func (m *machine) run(file, text string, gone bool) string {
	m.t.Helper()
	inside := "/root/" + filepath.Base(file)
	path := fmt.Sprintf("/proc/%d/root%s", m.cmd.Process.Pid, inside)
	eventually(m.t, "machine "+m.name+" is up", func() bool {
		return os.WriteFile(path, []byte(text), 0o600) == nil && chrooted(m.cmd.Process.Pid)
	})
	if _, err := io.WriteString(m.in, inside+"\n"); err != nil {
		m.t.Fatal(err)
	}
	var said strings.Builder
	limit := time.After(2 * time.Minute)
	for {
		select {
		case line, ok := <-m.lines:
			switch {
			case !ok && gone:
				return said.String()
			case !ok:
				m.t.Fatalf("%s: the commands failed:\n%s\nit said:\n%s", m.name, text, &said)
			case line == "== end of "+inside:
				return said.String()
			}
			fmt.Fprintln(&said, line)
		case <-limit:
			m.t.Fatalf("%s: the commands don't end:\n%s\nit said:\n%s", m.name, text, &said)
		}
	}
}

// chrooted says whether the process has a root directory of its own by now.
func chrooted(pid int) bool {
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", pid))
	return err == nil && root != "/"
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// loopDevice is a block device of a size in MiB, over a sparse file.
func loopDevice(t *testing.T, dir, name string, mib int64) string {
	t.Helper()
	file := filepath.Join(dir, name)
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(f.Truncate(mib<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
	return device
}

func TestGuideBlocks(t *testing.T) {
	list := guideBlocks("a\n```sh node1 node2\nx\ny\n```\n```\nz\n```\n")
	if len(list) != 2 || !slices.Equal(list[0].nodes, []string{"node1", "node2"}) ||
		list[0].text != "x\ny\n" || list[0].line != 3 || list[1].nodes != nil {
		t.Errorf("%+v", list)
	}
}

// TestGuide types the guide: every block, in its order, on the machines it names, with packages
// made of this tree. A command that fails ends it.
func TestGuide(t *testing.T) {
	if testing.Short() {
		t.Skip("it sets up a cluster of five machines: make test-long does")
	}
	if err := netlab.Available(); err != nil {
		t.Skip(err)
	}
	for _, program := range []string{"unshare", "losetup", "mkfs.ext4", "dpkg-deb", "blkid",
		"fusermount3"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " isn't installed")
		}
	}
	text, err := os.ReadFile("doc/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	bin, work := buildPrograms(t), t.TempDir()
	debs := filepath.Join(work, "debs")
	if out, err := exec.Command("deb/build", bin, debs, "1.0").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	systemctl, poweroff := filepath.Join(work, "systemctl"), filepath.Join(work, "poweroff")
	for path, script := range map[string]string{systemctl: systemctlScript, poweroff: poweroffScript} {
		if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var settings []string
	for i := range 5 { // before the lab, so that they are freed after it
		disk := loopDevice(t, work, fmt.Sprint("disk", i+1), 6<<10)
		journal := loopDevice(t, work, fmt.Sprint("journal", i+1), 128)
		settings = append(settings, fmt.Sprintf("DISK=%s\nJOURNAL=%s\nPASSWORD='correct horse'\n",
			disk, journal))
	}
	lab, err := netlab.Open("guide", work)
	if errors.Is(err, netlab.ErrInUse) {
		t.Skip("another test run has the lab")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	}()
	machines := map[string]*machine{}
	for i := range 5 {
		name := fmt.Sprint("node", i+1)
		machines[name] = startMachine(t, lab, name, debs, systemctl, poweroff)
	}
	typed := typeGuide(t, guideBlocks(string(text)), machines, settings)
	if typed < 15 {
		t.Errorf("only %d blocks were typed", typed)
	}
}

// typeGuide runs the blocks and returns how many there were.
func typeGuide(t *testing.T, blocks []block, machines map[string]*machine, settings []string) int {
	t.Helper()
	healthy := regexp.MustCompile(`(?m)^Cluster prod: healthy`)
	typed, last := 0, ""
	for _, b := range blocks {
		if slices.Equal(b.nodes, []string{"settings"}) {
			for i, text := range settings {
				machines[fmt.Sprint("node", i+1)].run("settings", text, false)
			}
			continue
		}
		for _, name := range b.nodes {
			m := machines[name]
			if m == nil {
				t.Fatalf("line %d names %q", b.line, name)
			}
			began := time.Now()
			said := m.run(fmt.Sprintf("line%d", b.line), b.text, strings.Contains(b.text, "poweroff"))
			t.Logf("line %d on %s: %v\n%s", b.line, name, time.Since(began).Round(time.Millisecond), said)
			if strings.Contains(b.text, "pstorage stat") {
				last = said
			}
		}
		typed++
	}
	if !healthy.MatchString(last) {
		t.Errorf("the last stat of the guide isn't healthy:\n%s", last)
	}
	return typed
}
