package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openPTY returns both ends of a new pseudo terminal.
func openPTY(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// typed runs pstorage on a terminal where a person types an answer to each prompt.
func (n *node) typed(prompts, answers []string, args ...string) (status int, screen string) {
	n.t.Helper()
	person, program := openPTY(n.t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := n.command(ctx, "pstorage", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	shown := newWatched()
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(shown, person)
		shown.end()
	}()
	for i, prompt := range prompts {
		if !shown.contains(prompt, 20*time.Second) {
			n.t.Fatalf("no prompt %q; the screen: %q", prompt, shown.text())
		}
		fmt.Fprintln(person, answers[i])
	}
	cmd.Wait()
	program.Close() // the last one that has it open: the reader comes to the end of the screen
	<-read
	return cmd.ProcessState.ExitCode(), shown.text()
}

// contains waits until text has been written, in a whole line or not.
func (w *watched) contains(text string, within time.Duration) bool {
	deadline := time.After(within)
	for {
		w.mu.Lock()
		found, changed := strings.Contains(w.buf.String(), text), w.changed
		w.mu.Unlock()
		if found {
			return true
		}
		select {
		case <-changed:
		case <-deadline:
			return false
		}
	}
}

func TestPasswordOnTerminal(t *testing.T) {
	n := newNode(t)
	args := []string{"-c", "c1", "make-mds", "-I", "-a", freePort(t), "-r", n.path("mds"), "-p"}
	prompts := []string{"Password of cluster c1: ", "The same again: "}

	before := n.snapshot()
	status, screen := n.typed(prompts, []string{"correct horse", "correct house"}, args...)
	if status != 1 || !strings.Contains(screen, "different") {
		t.Errorf("two different passwords: status %d, screen %q", status, screen)
	}
	if n.snapshot() != before {
		t.Error("two different passwords: something was changed")
	}
	status, screen = n.typed(prompts, []string{"correct horse", "correct horse"}, args...)
	if status != 0 || !strings.Contains(screen, "Cluster c1") {
		t.Errorf("status %d, screen %q", status, screen)
	}
	if strings.Contains(screen, "horse") {
		t.Errorf("the password is shown: %q", screen)
	}
}

func TestShortPasswordWarns(t *testing.T) {
	n := newNode(t)
	r := n.run("abc\n", "pstorage", "-c", "c1", "make-mds", "-I", "-a", freePort(t),
		"-r", n.path("mds"), "-P")
	if r.status != 0 || !strings.Contains(r.stderr, "warning: the password") {
		t.Errorf("status %d, stderr %q", r.status, r.stderr)
	}
}
