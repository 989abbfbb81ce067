package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manFlag, alone with a directory, has a program write its manual pages there: for packages.
const manFlag = "--man-pages"

// manSection of a page: commands that people type are in 1, daemons and what mounts in 8.
func manSection(root *cobra.Command) string {
	if strings.HasSuffix(root.Name(), "d") || strings.HasSuffix(root.Name(), "-mount") {
		return "8"
	}
	return "1"
}

// ManPages returns the manual pages of root and all its commands, by file name.
func ManPages(root *cobra.Command) map[string]string {
	root.InitDefaultHelpFlag()
	pages := make(map[string]string)
	section := manSection(root)
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" {
			return
		}
		cmd.InitDefaultHelpFlag()
		pages[manName(cmd)+"."+section] = manPage(cmd, section)
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(root)
	return pages
}

func writeManPages(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Fail("make "+dir, Plain(err), "")
	}
	for name, text := range ManPages(root) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return Fail("write "+name, Plain(err), "")
		}
	}
	return nil
}

// manDate is the day of the commit that the program was made of, of SOURCE_DATE_EPOCH, or today.
func manDate() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			if day, _, ok := strings.Cut(setting.Value, "T"); ok && setting.Key == "vcs.time" {
				return day
			}
		}
	}
	at := time.Now()
	if seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		at = time.Unix(seconds, 0)
	}
	return at.UTC().Format(time.DateOnly)
}

func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

func manPage(cmd *cobra.Command, section string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(`.TH "%s" "%s" "%s" "pstorage" "pstorage manual"`, roff(strings.ToUpper(manName(cmd))),
		section, manDate())
	line(".nh\n.ad l\n.SH NAME")
	line(`%s \- %s`, roff(manName(cmd)), roff(lowerFirst(cmd.Short)))
	line(".SH SYNOPSIS")
	line(`.B %s`, roff(cmd.CommandPath()))
	_, use, _ := strings.Cut(cmd.Use, " ")
	switch {
	case cmd.HasAvailableSubCommands():
		use = strings.TrimSpace(use + " COMMAND [ARGUMENTS]")
	case cmd.HasAvailableFlags():
		use = strings.TrimSpace("[FLAGS] " + use)
	}
	line("%s", roff(use))
	line(".SH DESCRIPTION")
	long := cmd.Long
	if long == "" {
		long = cmd.Short + "."
	}
	manText(line, long)
	if cmd.HasAvailableSubCommands() {
		line(".SH COMMANDS")
		for _, sub := range cmd.Commands() {
			if !sub.Hidden && sub.Name() != "help" {
				line(".TP\n.B %s\n%s", roff(sub.Name()), roff(sub.Short))
			}
		}
	}
	manFlags(line, "OPTIONS", cmd.NonInheritedFlags())
	manFlags(line, "OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	line(".SH EXIT STATUS\n0: done; 1: it failed, and nothing was changed unless the message says so;")
	line("2: wrong usage; 78: a daemon refuses to serve its directory.")
	if cmd.Example != "" {
		line(".SH EXAMPLES\n.nf\n%s\n.fi", roff(cmd.Example))
	}
	line(".SH SEE ALSO")
	also := `pstorage(1), pstorage\-mdsd(8), pstorage\-csd(8), pstorage\-mount(8), ` +
		`pstorage\-files(5)`
	if cmd.HasParent() {
		also = roff(manName(cmd.Parent())) + "(" + section + "), " + also
	}
	line("%s", also)
	return b.String()
}

// manText writes paragraphs; indented lines stay as they are.
func manText(line func(string, ...any), text string) {
	verbatim := false
	for l := range strings.Lines(text) {
		l = strings.TrimRight(l, "\n ")
		indented := strings.HasPrefix(l, "  ")
		if indented != verbatim && l != "" {
			verbatim = indented
			line(map[bool]string{true: ".nf", false: ".fi"}[indented])
		}
		if l == "" {
			line(".PP")
			continue
		}
		line("%s", roff(l))
	}
	if verbatim {
		line(".fi")
	}
}

func manFlags(line func(string, ...any), title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	line(".SH %s", title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := `\fB` + roff("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			name = `\fB` + roff("-"+f.Shorthand) + `\fR, ` + name
		}
		if value != "" {
			name += ` \fI` + roff(value) + `\fR`
		}
		switch f.DefValue {
		case "", "false", "0", "[]":
		default:
			usage += " (default " + f.DefValue + ")"
		}
		line(".TP\n%s\n%s", name, roff(usage))
	})
}

// roff escapes text: backslashes, hyphens that are typed, and what would be a request at the
// beginning of a line.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `…`, `...`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
