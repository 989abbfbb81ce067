package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pstorageCall finds calls of pstorage in a line of a shell: up to what ends a command.
var pstorageCall = regexp.MustCompile("(?:^|[\\s(|;!])pstorage ([^|;>)#`]*)")

// callsIn returns the command lines of a document's code blocks: fenced, or indented by four.
func callsIn(text string) (calls []string) {
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
			continue
		}
		if !fenced && !strings.HasPrefix(line, "    ") {
			continue
		}
		line, _, _ = strings.Cut(line, "<<<")
		for _, m := range pstorageCall.FindAllStringSubmatch(line, -1) {
			if args := strings.TrimSpace(m[1]); args != "" {
				calls = append(calls, args)
			}
		}
	}
	return calls
}

// checkCall says what is wrong with a command line: no such command, or no such flag.
func checkCall(line string) error {
	root := newRoot()
	var args []string
	for _, word := range strings.Fields(line) {
		args = append(args, strings.Trim(word, `"'`))
	}
	cmd, rest, err := root.Find(args)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil && cmd == root {
		err = errors.New("no command")
	}
	return err
}

// TestDocumentedCommands: the commands in the guides and in the README are there, with their flags.
func TestDocumentedCommands(t *testing.T) {
	files, err := filepath.Glob("../packaging/doc/*.md")
	if err != nil || len(files) < 4 {
		t.Fatalf("%v, %v", files, err)
	}
	total := 0
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range callsIn(string(text)) {
			total++
			if err := checkCall(call); err != nil {
				t.Errorf("%s: pstorage %s: %v", filepath.Base(file), call, err)
			}
		}
	}
	if total < 50 {
		t.Errorf("only %d commands found", total)
	}
	for _, bad := range []string{"no-such-command", "stat --nonsense", "rm-cs 3 --wiat"} {
		if checkCall(bad) == nil {
			t.Errorf("pstorage %s is taken for right", bad)
		}
	}
}
