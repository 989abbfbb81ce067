package main

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

// TestExportNBD has qemu's tools write to, read, copy and map a file of a cluster.
func TestExportNBD(t *testing.T) {
	for _, tool := range []string{"qemu-io", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing (Debian's qemu-utils)", tool)
		}
	}
	n := newNode(t)
	mdsd, _ := n.makeCluster(3)

	n.refused("", 2, []string{"which file"}, "export", "nbd")
	n.refused("", 2, []string{"slash"}, "export", "nbd", "disk")
	n.refused("", 2, []string{"IP address"}, "export", "nbd", "/disk", "--listen", "localhost")
	n.refused("", 2, []string{"--socket-mode", "0660"}, "export", "nbd", "/disk", "--socket", "s",
		"--socket-mode", "0888")
	n.refused("", 2, []string{"for --socket"}, "export", "nbd", "/disk", "--socket-mode", "0660")
	n.refused("", 2, []string{"file system"}, "export", "nbd", "/disk", "--socket", "@s",
		"--socket-mode", "0660")
	n.refused("", 2, []string{"no such group"}, "export", "nbd", "/disk", "--socket", "s",
		"--socket-group", "no such group")
	n.refused("", 1, []string{"/disk", "not found", "--create"}, "export", "nbd", "/disk")
	// Not before: chunk servers that have just become active still write to their directories.
	csd := n.start("pstorage-csd")
	eventually(t, "three chunk servers are active", func() bool { return n.active() == 3 })

	sock := n.path("nbd.sock")
	srv := n.start("pstorage", "export", "nbd", "/disk", "/second", "--create", "200M",
		"--socket", sock, "--socket-mode", "660", "--socket-group", fmt.Sprint(os.Getgid()),
		"--listen", "127.0.0.1:0")
	uri := "nbd+unix:///disk?socket=" + sock
	if line := srv.waitFor("serving"); line != "serving "+uri {
		t.Errorf("the service says %q", line)
	}
	if info, err := os.Stat(sock); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	tcp := strings.TrimPrefix(srv.waitFor("nbd://"), "serving ")
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	qemuIO := func(uri string, commands ...string) {
		t.Helper()
		args := []string{"-f", "raw"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		out := run("qemu-io", append(args, uri)...)
		if strings.Contains(out, "verification failed") || strings.Contains(out, "error") {
			t.Fatalf("qemu-io %v:\n%s", commands, out)
		}
	}
	qemuIO(uri, "write -P 0x5a 0 1M", "write -f -P 0x77 4097 513", "write -z 64k 64k",
		"discard 512k 128k", "write -P 9 60M 20M", "flush")
	// Another connection, by another way, sees it; so does one to the other file see nothing.
	qemuIO(tcp, "read -P 0x77 4097 513", "read -P 0 64k 64k", "read -P 0 512k 128k",
		"read -P 9 60M 20M", "read -P 0 80M 100M", "read -P 0x5a 768k 256k")
	qemuIO(strings.Replace(uri, "disk", "second", 1), "read -P 0 0 200M")

	img := n.path("random.img")
	random := make([]byte, 8<<20)
	rnd, err := os.Open("/dev/urandom")
	if err == nil {
		_, err = rnd.Read(random)
		rnd.Close()
	}
	if err == nil {
		err = os.WriteFile(img, random, 0o600)
	}
	if err == nil {
		err = os.Truncate(img, 200<<20)
	}
	if err != nil {
		t.Fatal(err)
	}
	run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", img, tcp)
	if out := run("qemu-img", "compare", "-f", "raw", "-F", "raw", img, uri); !strings.Contains(out,
		"identical") {
		t.Errorf("qemu-img compare: %s", out)
	}
	// What is allocated is known in chunks: 200 MiB are four, and the last two were not written.
	second := strings.Replace(uri, "disk", "second", 1)
	qemuIO(second, "write -P 1 0 4k")
	if out := run("qemu-img", "map", "--output=json", "-f", "raw", second); !strings.Contains(out,
		`"length": 67108864`) || !strings.Contains(out, `"data": false`) {
		t.Errorf("qemu-img map: %s", out)
	}
	srv.stop()
	if _, err := os.Stat(sock); err == nil {
		t.Error("the socket is left behind")
	}

	ro := n.start("pstorage", "export", "nbd", "/disk", "--read-only", "--socket", sock)
	ro.waitFor("serving")
	if info, err := os.Stat(sock); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	run("qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", uri)
	if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 4k", uri).
		CombinedOutput(); err == nil {
		t.Errorf("a read-only export was opened for writing: %s", out)
	}
	ro.stop()
	csd.stop()
	mdsd.stop()
}

// TestExportCreate: an empty file, as an interrupted --create leaves it, is given its size later.
func TestExportCreate(t *testing.T) {
	n := newNode(t)
	n.makeCluster(0)
	conf, err := cluster.Choose(n.etc, "c1")
	if err != nil {
		t.Fatal(err)
	}
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Open(t.Context(), client.ClientOptions{Cred: &cred, MDSAddrs: cli.MDSAddrs(conf)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err = c.Create(t.Context(), &control.CreateReq{Parent: dataplane.RootID, Name: "disk",
		Type: control.TypeFile, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	args := []string{"export", "nbd", "/disk", "--socket", n.path("s")}
	n.refused("", 1, []string{"empty", "--create"}, args...)
	n.refused("", 1, []string{"empty"}, append(args, "--create", "1G", "--read-only")...)
	n.refused("", 2, []string{"--create", "at most"}, "export", "nbd", "/new", "--create", "8P")
	if _, err = c.Resolve(t.Context(), "/new"); dataplane.KindOf(err) != dataplane.NotFound {
		t.Errorf("a file that would be too long was made: %v", err)
	}
	for _, size := range []string{"1G", "2G"} { // the second time it has its size
		srv := n.start("pstorage", append(args, "--create", size)...)
		srv.waitFor("serving")
		srv.stop()
		if a, err := c.Resolve(t.Context(), "/disk"); err != nil || a.Size != 1<<30 {
			t.Errorf("%+v, %v", a, err)
		}
	}
}

// TestExportURI: what the service says it serves can be given to a client as it is.
func TestExportURI(t *testing.T) {
	for _, c := range []struct{ addr, name, want string }{
		{"unix:/run/a.sock", "vm/disk1", "nbd+unix:///vm/disk1?socket=/run/a.sock"},
		{"127.0.0.1:10809", "vm/disk1", "nbd://127.0.0.1:10809/vm/disk1"},
		{"unix:/run/my sock", "größe #1?",
			"nbd+unix:///gr%C3%B6%C3%9Fe%20%231%3F?socket=/run/my%20sock"},
		{"unix:/run/a&b+c;d%20", "a:b", "nbd+unix:///a:b?socket=/run/a%26b%2Bc%3Bd%2520"},
	} {
		got := exportURI(c.addr, c.name)
		if got != c.want {
			t.Errorf("%s, %q: %s, want %s", c.addr, c.name, got, c.want)
		}
		u, err := url.Parse(got)
		if err != nil || u.Path != "/"+c.name {
			t.Errorf("%s: path %q, %v", got, u.Path, err)
		}
		if sock, ok := strings.CutPrefix(c.addr, "unix:"); ok && u.Query().Get("socket") != sock {
			t.Errorf("%s: socket %q", got, u.Query().Get("socket"))
		}
	}
}
