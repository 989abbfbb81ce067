package main

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestHWFlushCheck walks through it as a person does, with a disk that forgets.
func TestHWFlushCheck(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server := n.command(ctx, "pstorage", "hwflush-check", "-l", "127.0.0.1:0")
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		server.Process.Signal(os.Interrupt)
		if err := server.Wait(); err != nil {
			t.Errorf("the server ended with %v", err)
		}
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	addr := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	if err != nil || addr == "" {
		t.Fatalf("the server says %q, %v", line, err)
	}
	disk := n.path("disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	client := []string{"hwflush-check", "-s", addr, "-d", disk, "--size", "1M"}
	if r := n.run("", "pstorage", append(client, "--verify")...); r.status != 1 ||
		!strings.Contains(r.stderr, "knows nothing of this client") {
		t.Errorf("verify before anything was written: %+v", r)
	}
	if r := n.run("", "pstorage", append(client, "--time", "0.5")...); r.status != 0 ||
		!strings.Contains(r.stdout, "confirmed by the server") {
		t.Fatalf("write: %+v", r)
	}
	if r := n.run("", "pstorage", append(client, "--verify")...); r.status != 0 ||
		!strings.Contains(r.stdout, "OK: nothing") {
		t.Errorf("verify: %+v", r)
	}
	file := filepath.Join(disk, "hwflush-check.data")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r := n.run("", "pstorage", append(client, "--verify")...)
	if r.status != 1 || !strings.Contains(r.stderr, "LOST") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("verify of a disk that forgot: %+v", r)
	}
}

func TestHWFlushUsage(t *testing.T) {
	n := newNode(t)
	for _, args := range [][]string{{}, {"-s", "127.0.0.1"}, {"-d", n.dir},
		{"-l", "127.0.0.1", "-d", n.dir}, {"-s", "127.0.0.1", "-d", n.dir, "--time", "-1"}, {"x"},
		{"-s", "127.0.0.1", "-d", n.dir, "--sync", "never"}} {
		if r := n.run("", "pstorage", append([]string{"hwflush-check"}, args...)...); r.status != 2 {
			t.Errorf("%v: %+v", args, r)
		}
	}
	n.says(1, "pstorage hwflush-check -l ADDR", "hwflush-check", "-s", "127.0.0.1:1", "-d", n.dir)
	if withPort("10.0.0.1") != "10.0.0.1:2530" || withPort("10.0.0.1:7") != "10.0.0.1:7" ||
		withPort("::1") != "[::1]:2530" {
		t.Error("withPort is wrong")
	}
	if name := defaultName("host", "/"+strings.Repeat("x", 100)); len(name) != 64 {
		t.Errorf("a name of %d bytes", len(name))
	}
}
