package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
)

// LogFlags are the flags of daemons that say where messages go.
type LogFlags struct {
	File    string // empty: stderr
	Verbose bool
	PIDFile string
}

// Add adds the flags to cmd.
func (l *LogFlags) Add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.File, "log", "", "append log messages to `FILE` instead of stderr")
	cmd.Flags().BoolVarP(&l.Verbose, "verbose", "v", false, "log more")
	cmd.Flags().StringVar(&l.PIDFile, "pidfile", "", "write the process id to `FILE`")
}

// Args returns the flags as arguments for another process, without the PID file.
func (l *LogFlags) Args() []string {
	var args []string
	if l.File != "" {
		args = append(args, "--log", l.File)
	}
	if l.Verbose {
		args = append(args, "--verbose")
	}
	return args
}

// Abs makes the paths absolute, for a process that changes its directory.
func (l *LogFlags) Abs() error {
	for _, path := range []*string{&l.File, &l.PIDFile} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return Fail("find "+*path, err, "")
		}
		*path = abs
	}
	return nil
}

// Open returns the log. other is where it goes without --log.
func (l *LogFlags) Open(other io.Writer) (*slog.Logger, error) {
	options := &slog.HandlerOptions{}
	if l.Verbose {
		options.Level = slog.LevelDebug
	}
	if l.File != "" {
		f, err := os.OpenFile(l.File, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err != nil {
			return nil, Fail("open the log "+l.File, Plain(err), "choose another file with --log")
		}
		other = f // open until the process ends
	}
	return slog.New(slog.NewTextHandler(other, options)), nil
}

// WritePID writes the process id to the PID file, if one is wanted. The returned function
// removes the file again.
func (l *LogFlags) WritePID() (remove func(), err error) {
	if l.PIDFile == "" {
		return func() {}, nil
	}
	pid := strconv.Itoa(os.Getpid())
	temp := l.PIDFile + "." + pid
	err = os.WriteFile(temp, fmt.Appendln(nil, pid), 0o644)
	if err == nil {
		err = os.Rename(temp, l.PIDFile)
	}
	if err != nil {
		os.Remove(temp)
		return nil, Fail("write the PID file "+l.PIDFile, Plain(err), "choose another with --pidfile")
	}
	return func() { os.Remove(l.PIDFile) }, nil
}
