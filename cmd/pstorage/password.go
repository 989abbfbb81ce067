package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"pstorage/cmd/cli"
)

const (
	maxPassword   = 1024 // bytes
	shortPassword = 8    // characters; a shorter one is accepted with a warning
)

// passwordInput is where a password comes from.
type passwordInput struct {
	stdin    bool // -P: one line of standard input
	in       *os.File
	messages io.Writer // prompts and warnings
}

// ask returns the cluster's password.
func (p passwordInput) ask(name string) (string, error) {
	if p.stdin {
		return p.readLine()
	}
	return p.prompt(fmt.Sprintf("Password of cluster %s: ", name))
}

// askNew returns a new password for the cluster, asked for twice on a terminal.
func (p passwordInput) askNew(name string) (string, error) {
	password, err := p.ask(name)
	if err != nil {
		return "", err
	}
	if !p.stdin {
		again, err := p.prompt("The same again: ")
		if err != nil {
			return "", err
		}
		if again != password {
			return "", cli.Failf("set the password", "the two are different", "try again")
		}
	}
	if utf8.RuneCountInString(password) < shortPassword {
		fmt.Fprintf(p.messages, "warning: the password has fewer than %d characters\n", shortPassword)
	}
	return password, nil
}

func (p passwordInput) prompt(text string) (string, error) {
	fd := int(p.in.Fd())
	if !term.IsTerminal(fd) {
		return "", cli.Failf("read the password", "standard input isn't a terminal",
			"use -P to read it from standard input")
	}
	// An interrupt at the prompt must not leave the terminal without echo.
	state, err := term.GetState(fd)
	if err != nil {
		return "", cli.Fail("read the password", err, "")
	}
	defer term.Restore(fd, state)
	if err := echoOff(fd); err != nil { // before the prompt: somebody may type at once
		return "", cli.Fail("read the password", err, "")
	}
	fmt.Fprint(p.messages, text)
	password, err := term.ReadPassword(fd)
	fmt.Fprintln(p.messages)
	if err != nil {
		return "", cli.Fail("read the password", err, "")
	}
	return checkPassword(password)
}

func echoOff(fd int) error {
	settings, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	settings.Lflag &^= unix.ECHO
	return unix.IoctlSetTermios(fd, unix.TCSETS, settings)
}

func (p passwordInput) readLine() (string, error) {
	line, err := bufio.NewReader(io.LimitReader(p.in, maxPassword+2)).ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", cli.Fail("read the password from standard input", err, "")
	}
	return checkPassword(bytes.TrimRight(line, "\r\n"))
}

func checkPassword(password []byte) (string, error) {
	switch {
	case len(password) == 0:
		return "", cli.Failf("read the password", "it is empty", "give one")
	case len(password) > maxPassword:
		return "", cli.Failf("read the password",
			fmt.Sprintf("it is longer than %d bytes", maxPassword), "give a shorter one")
	case !utf8.Valid(password):
		return "", cli.Failf("read the password", "it isn't valid UTF-8", "give another one")
	}
	return string(password), nil
}
