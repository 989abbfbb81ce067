// Pstorage-mdsd serves this node's metadata servers: all that are in the mds.list of any cluster,
// in one process.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/cmd/metrics"
	"pstorage/cmd/web"
)

type mdsdOptions struct {
	cluster string
	dir     string
	metrics metrics.Flags
	web     web.Flags
	log     cli.LogFlags
	mdns    string
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
an orderly way: one that leads hands that over first.

With --web each of them can show a page with the cluster's state; what it shows comes from the
one that leads.

Up to four threads run at once, and at most one fewer than there are CPUs, which keeps the
collector's pauses short. GOMAXPROCS in the environment says another number.`,
		Example: `  pstorage-mdsd
  pstorage-mdsd --metrics 127.0.0.1:9520 --web 127.0.0.1:9530
  pstorage-mdsd -c test_cluster -r /pstorage/test_cluster-mds`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.mdns != "auto" && o.mdns != "on" && o.mdns != "off" {
				return cli.Usage("--mdns %s: it is on, off or auto", o.mdns)
			}
			return serve(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	flags := root.Flags()
	flags.StringVarP(&o.cluster, "cluster", "c", "", "serve only those of cluster `NAME`")
	flags.StringVarP(&o.dir, "dir", "r", "", "serve only the metadata server in `DIR`")
	o.metrics.Add(root, metrics.PortMDS)
	o.web.Add(root)
	flags.StringVar(&o.mdns, "mdns", "auto", "announce the servers by multicast DNS: on, off, or "+
		"`auto`: unless their address is of the loopback")
	o.log.Add(root)
	return root
}
