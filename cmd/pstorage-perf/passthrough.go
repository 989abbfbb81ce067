package main

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
)

const passthroughCommand = "fuse-passthrough"

// newPassthrough is the yardstick of the mount: what FUSE itself costs with the same library and
// the same options, when a request is passed on to a file of the local disk.
func newPassthrough() *cobra.Command {
	return &cobra.Command{
		Use:    passthroughCommand + " DIR MOUNTPOINT",
		Short:  "Show a directory at a mountpoint, until SIGTERM",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, err := fs.NewLoopbackRoot(args[0])
			if err != nil {
				return err
			}
			srv, err := fs.Mount(args[1], root, &fs.Options{
				MountOptions: fuse.MountOptions{
					MaxBackground: 512, MaxWrite: 1 << 20, DisableSplice: true, DirectMountStrict: true,
					ExtraCapabilities: fuse.CAP_ASYNC_DIO,
					// The kernel would do the work itself, and nothing would be passed on.
					DisabledCapabilities: fuse.CAP_PASSTHROUGH,
				}})
			if err != nil {
				return cli.Fail("mount "+args[1], err, "")
			}
			fmt.Fprintln(cmd.OutOrStdout(), "ready")
			<-cmd.Context().Done()
			return srv.Unmount()
		},
	}
}
