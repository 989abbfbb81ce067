// Pstorage-csd serves this node's chunk servers: one child process for each directory in the
// cs.list of each cluster, and a small parent that restarts them.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/cmd/metrics"
)

type csdOptions struct {
	cluster string
	dirs    []string // -r: only these
	scrub   scrubFlags
	child   bool     // serve the one directory of dirs, as a child of the supervisor
	relay   cli.Size // pass parts of writes on by splice and tee from this size on; 0: never
	crcs    crcMemory
	metrics metrics.Flags
	log     cli.LogFlags
}

func main() {
	cli.SpareProcs()
	os.Exit(cli.Run(cli.Context(), newRoot(), os.Args[1:], os.Stderr))
}

func newRoot() *cobra.Command {
	var o csdOptions
	root := &cobra.Command{
		Use:   "pstorage-csd",
		Short: "Serve this node's chunk servers",
		Long: `Serve this node's chunk servers: all that are in the cs.list of any cluster under
/etc/pstorage (or where PSTORAGE_ETC points to), each in a child process of its own. A
child that dies is started again; a line added to a cs.list is picked up within a
second. SIGTERM stops all in an orderly way, SIGHUP tries those again that refused to
serve their directory.`,
		Example: `  pstorage-csd
  pstorage-csd -c test_cluster -r /pstorage/test_cluster-cs`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.child {
				return serveChild(cmd.Context(), o, cmd.OutOrStdout())
			}
			return supervise(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	flags := root.Flags()
	flags.StringVarP(&o.cluster, "cluster", "c", "", "serve only the chunk servers of cluster `NAME`")
	flags.StringArrayVarP(&o.dirs, "dir", "r", nil,
		"serve only the chunk server in `DIR` (may be given several times)")
	flags.Var(&o.relay, "relay-from", "pass on by splice and tee what is at least this `SIZE` of a "+
		"part of 64K, while it arrives (default: never, see BENCHMARKS.md)")
	flags.Var(&o.crcs, "crc-memory", "keep so much (`SIZE`) of each chunk server's checksums in "+
		"memory; 1M is for 1 GiB of chunks, blocks beyond may take a second read of the disk "+
		"(default: 64M, and 64M for each TiB)")
	flags.BoolVar(&o.child, "child", false, "")
	flags.MarkHidden("child")
	o.scrub.add(flags)
	o.metrics.Add(root, metrics.PortCS)
	o.log.Add(root)
	return root
}
