// Pstorage is the command line of a pstorage cluster: it makes metadata and chunk servers, gives
// nodes their keys, shows what the cluster does, and runs a whole cluster for development.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
)

// app is what all commands share.
type app struct {
	cluster string // -c; may be empty when the node knows one cluster
	output  string // -o of commands that print documents
}

func main() {
	os.Exit(cli.Run(cli.Context(), newRoot(), os.Args[1:], os.Stderr))
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "pstorage",
		Short: "Administer pstorage clusters",
		Long: `Administer pstorage clusters.

A node's configuration is in /etc/pstorage, or where the environment variable
PSTORAGE_ETC points to. Errors are one line on stderr; the exit status is 0 for success,
1 for a failure, 2 for wrong usage. After a failure nothing was changed, unless the message
says so.`,
		Example: `  pstorage dev                                       # a whole cluster to play with
  pstorage -c prod make-mds -I -a 10.30.100.1 -r /pstorage/prod-mds -p
  pstorage -c prod auth-node -b 10.30.100.1          # on each further node
  pstorage -c prod make-cs -r /pstorage/prod-cs
  pstorage -c prod stat`,
	}
	root.PersistentFlags().StringVarP(&a.cluster, "cluster", "c", "",
		"`NAME` of the cluster; may be left out when this node belongs to one only")
	root.RegisterFlagCompletionFunc("cluster", completeCluster)
	root.AddCommand(
		newMakeMDS(a), newRemoveMDS(a), newAuthNode(a), newRotateKeys(a),
		newListKeys(a), newRevokeNode(a), newDiscover(a), newMakeCS(a),
		newConfigureCS(a), newAdoptCS(a), newListNodes(a), newMount(a), newUmount(a),
		newHWFlushCheck(), newStat(a), newTop(a), newListServices(a), newListClients(a),
		newGetEvent(a), newFileInfo(a), newGetAttr(a), newSetAttr(a), newRmCS(a), newRevoke(a),
		newGetConfig(a), newSetConfig(a), newScrub(a), newExport(a), newDev(a), newReport(a),
		newCompletion(), newVersion(a),
	)
	return root
}

// conf returns the configuration of the chosen cluster, which this node must have a key for.
func (a *app) conf() (*cluster.Conf, error) {
	conf, err := cluster.Choose(cluster.EtcDir(), a.cluster)
	if err != nil {
		return nil, cli.Fail("", err, chooseAdvice(err))
	}
	return conf, nil
}

// newConf returns the configuration of the cluster that -c names, which may not exist yet.
func (a *app) newConf() (*cluster.Conf, error) {
	if a.cluster == "" {
		return nil, cli.Usage("which cluster? name it with -c NAME")
	}
	conf, err := cluster.At(cluster.EtcDir(), a.cluster)
	if err != nil {
		return nil, cli.Fail("", err, "choose another name with -c")
	}
	return conf, nil
}
