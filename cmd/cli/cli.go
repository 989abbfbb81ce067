// Package cli holds what all pstorage programs have in common towards people and service
// managers: the form of errors and exit statuses, logs, signals, readiness, sizes.
//
// An error is one line on stderr, "program: what failed: why; what to do". Exit statuses:
//
//	0   done
//	1   failed; nothing was changed, unless the message says so
//	2   wrong usage
//	78  a daemon refuses to serve its directory (damaged, or of another cluster): starting it
//	    again would not help
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"pstorage/dataplane"
)

// The exit statuses.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2
	ExitRefuse = 78 // EX_CONFIG of sysexits.h
)

// Error is a failure as people see it.
type Error struct {
	What   string // what failed; may be empty
	Why    error  // never nil
	Advice string // what to do; may be empty
	Status int    // exit status; 0 stands for ExitFailed
}

func (e *Error) Error() string {
	line := e.Why.Error()
	if e.What != "" && !strings.HasPrefix(line, e.What+":") { // said already
		line = e.What + ": " + line
	}
	if e.Advice != "" {
		line += "; " + e.Advice
	}
	return line
}

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Why }

// Fail makes an error of what failed, why, and what to do. It returns nil for a nil err. An err
// that is an *Error already is returned as it is: the innermost advice is the best one.
func Fail(what string, err error, advice string) error {
	if err == nil {
		return nil
	}
	var have *Error
	if errors.As(err, &have) {
		return err
	}
	return &Error{What: what, Why: err, Advice: advice}
}

// Failf makes an error of what failed, a reason in words, and what to do.
func Failf(what, why, advice string) error {
	return &Error{What: what, Why: errors.New(why), Advice: advice}
}

// Usage makes an error about how the program was called.
func Usage(format string, args ...any) error {
	return &Error{Why: fmt.Errorf(format, args...), Status: ExitUsage}
}

// Run runs the command line args with root and returns the exit status. An error is printed to
// stderr as one line.
func Run(ctx context.Context, root *cobra.Command, args []string, stderr io.Writer) int {
	if len(args) == 2 && args[0] == manFlag {
		err := writeManPages(root, args[1])
		if err != nil {
			fmt.Fprintf(stderr, "%s: %s\n", root.Name(), OneLine(err))
		}
		return Status(err)
	}
	ran := false
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentPreRun = func(*cobra.Command, []string) { ran = true }
	root.SetArgs(args)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	var e *Error
	if !errors.As(err, &e) && !ran {
		// What cobra itself finds before it runs a command is wrong usage.
		err = &Error{Why: err, Advice: "see " + cmd.CommandPath() + " --help", Status: ExitUsage}
	}
	fmt.Fprintf(stderr, "%s: %s\n", root.Name(), OneLine(err))
	return Status(err)
}

// NoArgs is for commands without arguments. It is of cobra.PositionalArgs.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return Usage("unexpected argument %q; see %s --help", args[0], cmd.CommandPath())
}

// Status returns the exit status for err.
func Status(err error) int {
	if err == nil {
		return ExitOK
	}
	var e *Error
	if errors.As(err, &e) && e.Status != 0 {
		return e.Status
	}
	return ExitFailed
}

// OneLine returns the text of err without line ends and control characters, so that one error is
// one line wherever its parts come from.
func OneLine(err error) string {
	text := strings.TrimSpace(err.Error())
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}

// Plain returns the reason of an operating system error without the system call's and the file's
// name, for messages that name them already.
func Plain(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	var sysErr *os.SyscallError
	if errors.As(err, &sysErr) {
		return sysErr.Err
	}
	return err
}

// Refusal says whether a daemon that ended with err would only fail again: its directory is
// damaged, belongs to another cluster, or the metadata servers don't want it.
func Refusal(err error) bool {
	switch dataplane.KindOf(err) {
	case dataplane.WrongCluster, dataplane.Denied, dataplane.Conflict, dataplane.Malformed,
		dataplane.Invalid, dataplane.NotSupported, dataplane.BadCRC:
		return true
	}
	return false
}

// Context returns a context that ends with SIGINT or SIGTERM. The second such signal ends the
// process at once.
func Context() context.Context {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx
}
