package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/discover"
)

// discoverDoc is what pstorage discover -o json prints.
type discoverDoc struct {
	Cluster string        `json:"cluster"`
	Ways    []discoverWay `json:"ways"` // in the order in which they are tried
}

type discoverWay struct {
	Way   string   `json:"way"` // "dns", "mdns", "list"
	Addrs []string `json:"addrs"`
	Error string   `json:"error,omitempty"`
}

func newDiscover(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "discover",
		Short: "Look for a cluster's metadata servers, and say what was found in which way",
		Long: `Look for a cluster's metadata servers, and say what was found in which way:

  dns   SRV records of _pstorage._tcp.CLUSTER in the search domains
  mdns  multicast DNS on the networks of this node
  list  bs.list in the cluster's configuration

All that connects to the cluster tries them in this order, unless the file "discovery" in
the cluster's configuration, or else /etc/pstorage/discovery, names others, such as "list"
or "dns list". The node needs no key for it: it is for finding a cluster before auth-node,
too.`,
		Example: `  pstorage -c test_cluster discover
  pstorage -c test_cluster discover -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := a.anyConf()
			if err != nil {
				return err
			}
			doc, err := lookFor(cmd.Context(), conf)
			if err != nil {
				return err
			}
			if err := a.print(cmd.OutOrStdout(), doc, func(t *table) { showFound(t, doc) }); err != nil {
				return err
			}
			for _, w := range doc.Ways {
				if len(w.Addrs) > 0 {
					return nil
				}
			}
			return cli.Failf("find cluster "+doc.Cluster, "no way led to a metadata server",
				"give the address of one to pstorage auth-node with -b ADDR")
		},
	}
	a.addOutput(cmd)
	return cmd
}

// anyConf is the configuration of the chosen cluster, whether this node has a key for it or not.
func (a *app) anyConf() (*cluster.Conf, error) {
	if a.cluster != "" {
		return a.newConf()
	}
	return a.conf()
}

func lookFor(ctx context.Context, conf *cluster.Conf) (*discoverDoc, error) {
	finder := discover.Finder{Conf: conf}
	found, err := finder.Find(ctx)
	if err != nil {
		return nil, cli.Fail("", err, "mend or remove it")
	}
	doc := &discoverDoc{Cluster: conf.Name()}
	for _, f := range found {
		w := discoverWay{Way: f.Way, Addrs: []string{}}
		for _, addr := range f.Addrs {
			w.Addrs = append(w.Addrs, addr.String())
		}
		if f.Err != nil {
			w.Error = f.Err.Error()
		}
		doc.Ways = append(doc.Ways, w)
	}
	return doc, nil
}

func showFound(t *table, doc *discoverDoc) {
	t.row("WAY", "ADDRESS")
	for _, w := range doc.Ways {
		for _, addr := range w.Addrs {
			t.row(w.Way, addr)
		}
		switch {
		case w.Error != "":
			t.row(w.Way, "- "+clean(w.Error))
		case len(w.Addrs) == 0:
			t.row(w.Way, "-")
		}
	}
}

// discoverAddrs finds metadata servers for a node that has no bs.list yet.
func discoverAddrs(ctx context.Context, conf *cluster.Conf) ([]string, error) {
	if _, err := conf.LoadBS(); !errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it is taken as it is
	}
	doc, err := lookFor(ctx, conf)
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, w := range doc.Ways {
		addrs = append(addrs, w.Addrs...)
	}
	return addrs, nil
}
