// Pstorage-mount mounts a cluster's files on a directory. Like mount(8) it returns when the mount
// can be used; what serves it runs on in the background until umount, or fusermount3 -u.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/cmd/metrics"
)

type mountOptions struct {
	cluster    string
	mountpoint string
	foreground bool
	options    []string // -o
	wait       time.Duration
	metrics    metrics.Flags
	log        cli.LogFlags
}

func main() {
	cli.SpareProcs()
	if isHelper(os.Args[0]) {
		args, fake, err := helperArgs(os.Args[1:])
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %s\n", helperName, cli.OneLine(err))
			os.Exit(cli.Status(err))
		}
		if fake {
			return
		}
		os.Args = append([]string{os.Args[0]}, args...) // also what runs in the background is given
	}
	os.Exit(cli.Run(cli.Context(), newRoot(), os.Args[1:], os.Stderr))
}

func newRoot() *cobra.Command {
	var o mountOptions
	root := &cobra.Command{
		Use:   "pstorage-mount MOUNTPOINT",
		Short: "Mount a pstorage cluster",
		Long: `Mount a pstorage cluster on a directory. Like mount(8) it returns when the mount can be
used; what serves it runs on in the background until the directory is unmounted (umount,
fusermount3 -u) or the process gets SIGTERM.

Options of -o: allow_other (the default for root) and noallow_other: other users may
(not) use the mount; ro: read-only; fsname=NAME: what the mount table shows;
fuse-uring=auto|on|off: whether the kernel's requests come over io_uring (Linux 6.14) or by
/dev/fuse. Over io_uring a request takes less CPU, and with many requests under way more are served;
one at a time is as quick by /dev/fuse, or a little quicker. auto, the default, takes io_uring where
the kernel has it, and as root switches it on there (fuse.enable_uring); the log says which it is.
Options of mount(8) that change nothing here (defaults, _netdev, noatime, x-systemd.*) are accepted.

A line of fstab(5) is: pstorage://CLUSTER /pcs fuse.pstorage _netdev 0 0. There the options
log=FILE, metrics=IP:PORT and wait=TIME stand for the flags.`,
		Example: `  mkdir -p /pcs && pstorage-mount -c test_cluster /pcs
  mount -t fuse.pstorage pstorage://test_cluster /pcs
  umount /pcs`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usage("one mount point is needed, %d were given", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.mountpoint = args[0]
			return run(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	flags := root.Flags()
	flags.StringVarP(&o.cluster, "cluster", "c", "",
		"`NAME` of the cluster; may be left out when this node belongs to one only")
	flags.BoolVarP(&o.foreground, "foreground", "f", false, "stay in the foreground")
	flags.StringSliceVarP(&o.options, "options", "o", nil, "mount `OPTIONS`, comma-separated")
	flags.DurationVar(&o.wait, "wait", 15*time.Second,
		"how long to wait for the metadata servers to answer; 80s for lines of fstab")
	o.metrics.Add(root, metrics.PortMount)
	o.log.Add(root)
	return root
}
