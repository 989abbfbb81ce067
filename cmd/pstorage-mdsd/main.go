// Pstorage-mdsd serves this node's metadata servers: all that are in the mds.list of any cluster,
// in one process.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/cmd/metrics"
)

type mdsdOptions struct {
	cluster string
	dir     string
	metrics metrics.Flags
	log     cli.LogFlags
}

func main() {
	os.Exit(cli.Run(cli.Context(), newRoot(), os.Args[1:], os.Stderr))
}

func newRoot() *cobra.Command {
	var o mdsdOptions
	root := &cobra.Command{
		Use:   "pstorage-mdsd",
		Short: "Serve this node's metadata servers",
		Long: `Serve this node's metadata servers: all that are in the mds.list of any cluster under
/etc/pstorage (or where PSTORAGE_ETC points to), in one process. SIGTERM stops them in
an orderly way.`,
		Example: `  pstorage-mdsd
  pstorage-mdsd -c test_cluster -r /pstorage/test_cluster-mds`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	flags := root.Flags()
	flags.StringVarP(&o.cluster, "cluster", "c", "", "serve only those of cluster `NAME`")
	flags.StringVarP(&o.dir, "dir", "r", "", "serve only the metadata server in `DIR`")
	o.metrics.Add(root, metrics.PortMDS)
	o.log.Add(root)
	return root
}
