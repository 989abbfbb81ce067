package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"pstorage/chunk"
	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
)

type configureCSOptions struct {
	dir     string
	journal string
	drop    bool
	size    cli.Size
}

func newConfigureCS(a *app) *cobra.Command {
	var o configureCSOptions
	cmd := &cobra.Command{
		Use:   "configure-cs",
		Short: "Move or resize the journal of a chunk server on this node",
		Long: `Move or resize the journal of a chunk server on this node: add one on an SSD (-j), move it
to another device (-j), change its size (-s), take it back to the disk of the chunks (-d).
Without any of these, show where it is.

Everything in the journal is written to the disk first, so it takes a while if a lot is in it.
The chunk server doesn't serve meanwhile: reads and writes go on with the other copies, and
what is written to those follows when it is back. If the chunk server runs it is stopped, and
pstorage-csd starts it again at the end. The command may be interrupted, or the
machine fail, at any moment: either the old journal or the new one is in use then, whole.`,
		Example: `  pstorage -c prod configure-cs -r /disk2/cs -j /ssd/journals -s 20G   # add, or move
  pstorage -c prod configure-cs -r /disk2/cs -s 40G                    # resize
  pstorage -c prod configure-cs -r /disk2/cs -d                        # no SSD any more
  pstorage -c prod configure-cs -r /disk2/cs                           # where is it?`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.drop && o.journal != "" {
				return cli.Usage("-d takes the journal back to %s, -j to another place: only one of them",
					o.dir)
			}
			return configureCS(cmd.Context(), a, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.dir, "dir", "r", "", "`DIR` of the chunk server")
	flags.StringVarP(&o.journal, "journal", "j", "",
		"new `PATH` of the journal: a new file, a directory for it, or an empty block device")
	flags.BoolVarP(&o.drop, "drop-journal", "d", false, "put the journal into DIR, on its disk")
	flags.VarP(&o.size, "size", "s", "new size of the journal file (default: as it is)")
	a.addOutput(cmd)
	return cmd
}

// csJournalDoc is what configure-cs -o json prints.
type csJournalDoc struct {
	Cluster string        `json:"cluster"`
	Dir     string        `json:"dir"`
	Journal chunk.Journal `json:"journal"`
	Changed bool          `json:"changed"`
}

func configureCS(ctx context.Context, a *app, o configureCSOptions, out, messages io.Writer) error {
	conf, err := a.conf()
	if err != nil {
		return err
	}
	if o.dir == "" {
		return cli.Usage("which chunk server? name its directory with -r DIR")
	}
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return cli.Fail("find "+o.dir, err, "")
	}
	if err := ownCS(conf, dir); err != nil {
		return err
	}
	what := "change the journal of " + dir
	journal, err := chunk.JournalOf(dir)
	if err != nil {
		return cli.Fail(what, err, "")
	}
	if o.drop && o.size == 0 && !journal.Device && filepath.Dir(journal.Path) == dir {
		o.drop = false // it is there: nothing is worth stopping the chunk server for
	}
	changes := o.drop || o.journal != "" || o.size != 0
	if changes {
		if o.journal != "" && o.journal != journal.Path {
			if o.journal, err = journalPath(conf, dir, o.journal); err != nil {
				return err
			}
		}
		progress := newProgress(messages, a.output == "json")
		journal, err = changeJournal(ctx, dir, journal, o, progress)
		progress.end()
		if err != nil {
			return cli.Fail(what, err, journalAdvice(err))
		}
		if o.journal != "" {
			warnOfFlushes(messages, journal.Path)
		}
	}
	doc := csJournalDoc{conf.Name(), dir, journal, changes}
	return a.print(out, doc, func(t *table) {
		kind := "file"
		if journal.Device {
			kind = "device"
		}
		t.line("The journal of %s is the %s %s, %s.", clean(dir), kind, clean(journal.Path),
			size(uint64(journal.Size)))
		if changes {
			t.line("If pstorage-csd runs, it starts the chunk server again.")
		}
	})
}

func journalAdvice(err error) string {
	if errors.Is(err, chunk.ErrServed) {
		return "stop it first, for example with systemctl stop pstorage-csd@CLUSTER"
	}
	return advice(err)
}

// ownCS says whether dir is a chunk server of this node and cluster.
func ownCS(conf *cluster.Conf, dir string) error {
	daemons, err := conf.Daemons(cluster.CS)
	if err != nil {
		return cli.Fail("", err, "")
	}
	var dirs []string
	for _, d := range daemons {
		if d.Dir == dir {
			return nil
		}
		dirs = append(dirs, d.Dir)
	}
	known := "this node has none of this cluster"
	if len(dirs) > 0 {
		known = "this node has " + strings.Join(dirs, ", ")
	}
	return cli.Failf("find the chunk server in "+dir, conf.ListPath(cluster.CS)+" doesn't have it",
		known)
}

// changeJournal has whoever serves dir let go of it, and changes its journal.
func changeJournal(ctx context.Context, dir string, now chunk.Journal, o configureCSOptions,
	progress *progress) (chunk.Journal, error) {
	change := chunk.JournalChange{Path: o.journal, Size: int64(o.size), Progress: progress.bytes,
		Log: slog.New(slog.DiscardHandler)}
	if !o.drop && o.journal == "" {
		// Another size, in the same place: a device has but one.
		if now.Device {
			return now, cli.Failf("resize the journal of "+dir, now.Path+" is a device, it is as large "+
				"as that", "move it to another one with -j")
		}
		if filepath.Dir(now.Path) != dir {
			change.Path = besides(now.Path)
		}
	}
	lock, supervisor, err := stopServing(ctx, dir)
	if err != nil {
		return now, err
	}
	defer func() {
		lock.Close()
		if supervisor != 0 {
			syscall.Kill(supervisor, syscall.SIGHUP) // start it again now; it does so in 5 s anyway
		}
	}()
	change.Lock = lock
	return chunk.ChangeJournal(dir, change)
}

// besides returns a new name for a file, in the same directory: name.2, name.3, ... If nobody can
// say whether a name is free it is that one, and making the file says why not.
func besides(path string) string {
	base, number := path, 1
	if stem, ext, ok := strings.Cut(filepath.Base(path), ".journal."); ok {
		if n, err := strconv.Atoi(ext); err == nil {
			base, number = filepath.Join(filepath.Dir(path), stem+".journal"), n
		}
	}
	for {
		number++
		next := fmt.Sprintf("%s.%d", base, number)
		if _, err := os.Lstat(next); err != nil {
			return next
		}
	}
}

const stopServingWithin = 40 * time.Second // pstorage-csd itself gives its children 20 s

// stopServing stops the process that serves dir, if there is one, and keeps the next one from
// starting until the lock is closed: the supervisor, whose process is returned, tries again every
// few seconds.
func stopServing(ctx context.Context, dir string) (lock *os.File, supervisor int, err error) {
	path := filepath.Join(dir, "lock")
	lock, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, cli.Fail("lock "+dir, cli.Plain(err), advice(err))
	}
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		return lock, 0, nil
	}
	pid := lockHolder(lock)
	if name := commandName(pid); name != "pstorage-csd" {
		lock.Close()
		return nil, 0, cli.Failf("stop the chunk server in "+dir,
			fmt.Sprintf("process %d (%s) uses it", pid, clean(name)), "let it end first")
	}
	if parent := parentOf(pid); commandName(parent) == "pstorage-csd" {
		supervisor = parent
	}
	// The lock is asked for before the process is told to end: the kernel gives it to who waits,
	// and so not to the child that the supervisor starts in its place.
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(lock.Fd()), unix.LOCK_EX) }()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return nil, 0, cli.Fail(fmt.Sprintf("stop the chunk server in %s (process %d)", dir, pid), err,
			advice(err))
	}
	select {
	case err = <-got:
	case <-ctx.Done():
		err = errors.New("interrupted")
	case <-time.After(stopServingWithin):
		err = fmt.Errorf("process %d doesn't end", pid)
	}
	if err != nil {
		return nil, 0, cli.Fail("stop the chunk server in "+dir, err, "")
	}
	return lock, supervisor, nil
}

// lockHolder returns the process that has a lock on the file, 0 if none has.
func lockHolder(f *os.File) int {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(text)) {
		// 1: FLOCK  ADVISORY  WRITE 708 00:13:5678 0 EOF
		fields := strings.Fields(line)
		if len(fields) >= 6 && fields[1] == "FLOCK" && fields[5] == inode {
			pid, _ := strconv.Atoi(fields[4])
			return pid
		}
	}
	return 0
}

// commandName is the name of the program that a process runs.
func commandName(pid int) string {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return "unknown"
	}
	return strings.TrimSuffix(filepath.Base(exe), " (deleted)") // replaced by an upgrade
}

// parentOf is a process's parent, 0 if that can't be told.
func parentOf(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	var parent int
	_, rest, _ := strings.Cut(string(text), ") ") // the name before may have anything in it
	if n, _ := fmt.Sscanf(rest, "%s %d", new(string), &parent); n != 2 {
		return 0
	}
	return parent
}
