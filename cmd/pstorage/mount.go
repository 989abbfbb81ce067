package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"pstorage/cmd/cli"
)

// mountsDoc lists the mounts of this node.
type mountsDoc struct {
	Mounts []cli.Mount `json:"mounts"`
}

func newMount(a *app) *cobra.Command {
	var options []string
	cmd := &cobra.Command{
		Use:   "mount [MOUNTPOINT]",
		Short: "Mount a cluster on a directory, or list this node's mounts",
		Long: `Mount a cluster on a directory; without one, list this node's mounts. The program
pstorage-mount does the work: pstorage-mount(8) has all options. A line of fstab(5) is:

  pstorage://CLUSTER /pcs fuse.pstorage _netdev 0 0`,
		Example: `  pstorage -c test_cluster mount /pcs
  pstorage mount -o json
  pstorage umount /pcs`,
		Args: atMostOne("MOUNTPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if err := mountOn(cmd.Context(), a, args[0], options); err != nil {
					return err
				}
			}
			return listMounts(a, args, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringSliceVar(&options, "options", nil,
		"mount `OPTIONS` such as ro, allow_other, comma-separated")
	a.addOutput(cmd)
	return cmd
}

// atMostOne is for commands with one argument that may be left out.
func atMostOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return cli.Usage("at most one %s, %d were given; see %s --help", name, len(args),
				cmd.CommandPath())
		}
		return nil
	}
}

// mountStop is how long pstorage-mount may take to end when mounting is called off.
const mountStop = 10 * time.Second

// mountOn has pstorage-mount mount the cluster, and passes its error on. When ctx ends it gets
// SIGTERM, which it passes on to the process that is to serve the mount; killed, it would leave
// that one to mount later. It is in a process group of its own: a Ctrl-C on the terminal would be a
// first signal, and the second one ends it at once.
func mountOn(ctx context.Context, a *app, mountpoint string, options []string) error {
	conf, err := a.conf()
	if err != nil {
		return err
	}
	program, err := sibling("pstorage-mount")
	if err != nil {
		return err
	}
	args := []string{"-c", conf.Name()}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	var says strings.Builder
	cmd := exec.CommandContext(ctx, program, append(args, "--", mountpoint)...)
	cmd.Stderr = &says
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = mountStop
	err = cmd.Run()
	var exit *exec.ExitError
	failed := errors.As(err, &exit)
	text := strings.TrimPrefix(strings.TrimSpace(says.String()), "pstorage-mount: ")
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && failed && exit.Exited():
		return cli.Failf("mount on "+mountpoint, "interrupted", "")
	case ctx.Err() != nil: // it was ready just then, or had to be killed
		return cli.Failf("mount on "+mountpoint, "interrupted",
			"pstorage mount says whether it is mounted all the same")
	case failed && exit.Exited():
		return &cli.Error{Why: errors.New(text), Status: exit.ExitCode()}
	}
	return cli.Fail("run "+program, err, "")
}

// sibling finds a program of this installation.
func sibling(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	return path, cli.Fail("run "+name, err, "install the package pstorage-client")
}

// listMounts prints this node's mounts, or only those on the mount points given.
func listMounts(a *app, only []string, out io.Writer) error {
	all, err := cli.Mounts()
	if err != nil {
		return err
	}
	at := ""
	if len(only) > 0 {
		if at, err = cli.Place(all, only[0]); err != nil {
			return err
		}
	}
	doc := mountsDoc{Mounts: []cli.Mount{}}
	for _, m := range all {
		if at == "" || m.Mountpoint == at {
			doc.Mounts = append(doc.Mounts, m)
		}
	}
	return a.print(out, doc, func(t *table) {
		if len(doc.Mounts) == 0 {
			t.line("Nothing is mounted on this node.")
			return
		}
		t.row("MOUNTPOINT", "SOURCE", "MODE")
		for _, m := range doc.Mounts {
			mode := "read-write"
			if m.ReadOnly {
				mode = "read-only"
			}
			t.row(m.Mountpoint, m.Source, mode)
		}
	})
}

func newUmount(a *app) *cobra.Command {
	lazy := false
	cmd := &cobra.Command{
		Use:   "umount MOUNTPOINT",
		Short: "Unmount a cluster from a directory",
		Long: `Unmount a cluster from a directory. What was written is on stable storage already when its
fsync returned; the rest is sent first. It is refused while files there are open; --lazy takes
the mount out of the tree at once and ends it when the last file is closed.`,
		Example: `  pstorage umount /pcs
  pstorage umount --lazy /pcs`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usage("one mount point is needed; see %s --help", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return umount(a, args[0], lazy, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "l", false, "also while files there are open")
	a.addOutput(cmd)
	return cmd
}

func umount(a *app, mountpoint string, lazy bool, out io.Writer) error {
	mounts, err := cli.Mounts()
	if err != nil {
		return err
	}
	path, err := cli.Place(mounts, mountpoint)
	if err != nil {
		return err
	}
	what := "unmount " + path
	doc := mountsDoc{Mounts: []cli.Mount{}}
	for _, m := range mounts {
		if m.Mountpoint == path {
			doc.Mounts = []cli.Mount{m} // the uppermost, if there are several
		}
	}
	if len(doc.Mounts) == 0 {
		return cli.Failf(what, "no pstorage cluster is mounted there",
			"pstorage mount lists this node's mounts")
	}
	switch {
	case lazy:
		err = detachMount(path)
	case os.Geteuid() == 0:
		err = unix.Unmount(path, 0)
	default:
		err = fusermount("-u", path)
	}
	if errors.Is(err, syscall.EBUSY) {
		return cli.Failf(what, "files there are in use",
			fmt.Sprintf("see who uses them with: fuser -vm %s; or use --lazy", path))
	}
	if err != nil {
		return cli.Fail(what, err, advice(err))
	}
	return a.print(out, doc, func(t *table) {
		t.line("%s is unmounted.", clean(path))
	})
}
