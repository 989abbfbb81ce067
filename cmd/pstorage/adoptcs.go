package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"pstorage/chunk"
	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

// adoptOptions are the arguments of adopt-cs.
type adoptOptions struct {
	control.AdoptCSArgs
	dir  string
	addr string
}

func newAdoptCS(a *app) *cobra.Command {
	var o adoptOptions
	cmd := &cobra.Command{
		Use:   "adopt-cs {-r DIR | CSID...}",
		Short: "Take over a chunk server whose disk was moved to this node",
		Long: `Take over a chunk server whose disk was moved to this node, with all its data. A chunk
server belongs to the node whose key it registered with first, and no other node's key is
good for it, so that a stolen key can't speak for the servers of other nodes. This command
makes it belong to this node, and has pstorage-csd here serve the directory.

That is for administrators. If this node's key isn't an administrator's, first say it on a
node whose key is, by the chunk server's number and this node's ID in pstorage list-keys,
and then here with -r. On the old node remove the directory from cs.list. Before the disk
is pulled out stop pstorage-csd there; its journal must come along if it is on an SSD.`,
		Example: `  pstorage adopt-cs -r /pstorage/disk3/cs
  pstorage adopt-cs -r /pstorage/disk3/cs -a 10.30.100.18
  pstorage adopt-cs 3 --node 01c3a5f09e2b7d44      # on an administrator's node`,
		Args: func(_ *cobra.Command, args []string) error { return o.parse(args) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			return adoptCS(cmd.Context(), a, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.dir, "dir", "r", "", "`DIR` of the chunk server, on this node now")
	flags.StringVarP(&o.addr, "addr", "a", "",
		"with -r: `IP[:PORT]` that others reach it at (default: as for pstorage make-cs)")
	flags.StringVar(&o.Node, "node", "", "with CSID: the `ID` of the node they belong to from now on")
	a.addOutput(cmd)
	return cmd
}

func (o *adoptOptions) parse(args []string) (err error) {
	switch {
	case (o.dir == "") == (len(args) == 0):
		return cli.Usage("either -r DIR, or the numbers of chunk servers with --node ID")
	case o.dir != "" && o.Node != "":
		return cli.Usage("-r is about this node: no --node then")
	case o.dir != "":
		return nil
	case o.addr != "":
		return cli.Usage("-a goes with -r")
	case o.Node == "":
		return cli.Usage("which node do they belong to now? --node ID; pstorage list-keys has the IDs")
	}
	o.CS, err = parseCSIDs(args)
	return err
}

func adoptCS(ctx context.Context, a *app, o adoptOptions, out, messages io.Writer) error {
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	if o.dir == "" {
		var doc control.AdoptCSDoc
		if err := conn.get(ctx, "adopt "+csList(o.CS), control.AdminAdoptCS, o.AdoptCSArgs,
			&doc); err != nil {
			return err
		}
		return a.print(out, doc, func(t *table) {
			showAdopted(t, doc)
			t.line("On that node, if it isn't done yet: pstorage adopt-cs -r DIR")
		})
	}
	return adoptDir(ctx, a, conn, o, out, messages)
}

// adoptDir takes over the chunk server in o.dir. Nothing is changed on this node before the cluster
// has agreed.
func adoptDir(ctx context.Context, a *app, conn *adminConn, o adoptOptions,
	out, messages io.Writer) error {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return cli.Fail("find "+o.dir, err, "")
	}
	what := "adopt the chunk server in " + dir
	if err := cluster.CheckDir(dir); err != nil {
		return cli.Fail(what, err, "mount the disk elsewhere")
	}
	key, err := conn.conf.LoadKey()
	if err != nil {
		return cli.Fail("", err, "")
	}
	id, err := chunk.ReadIdentity(dir)
	if err != nil {
		return cli.Fail(what, err, "")
	}
	switch {
	case id.Cluster != key.Cluster.String():
		return cli.Failf(what, fmt.Sprintf("it is of another cluster, %q (id %s)",
			clean(id.ClusterName), id.Cluster), "name that cluster with -c")
	case id.CS == 0:
		return cli.Failf(what, "it was never served, so that it belongs to no node",
			"add the directory to "+conn.conf.ListPath(cluster.CS))
	}
	if _, err := chunk.JournalOf(dir); err != nil {
		return cli.Fail(what, err, "its journal must come along with the disk, at the same path")
	}
	daemons, err := conn.conf.Daemons(cluster.CS)
	if err != nil {
		return cli.Fail("", err, "")
	}
	listed := slices.ContainsFunc(daemons, func(d cluster.Daemon) bool { return d.Dir == dir })
	var held *heldAddr
	if !listed {
		unlock, err := lockNode(conn.conf, messages)
		if err != nil {
			return err
		}
		held, err = csAddr(conn.conf, o.addr)
		unlock()
		if err != nil {
			return err
		}
		defer held.close()
	} else if o.addr != "" {
		return cli.Failf(what, conn.conf.ListPath(cluster.CS)+" has it already, with its address",
			"change the address there")
	}
	var doc control.AdoptCSDoc
	o.CS = []uint32{uint32(id.CS)}
	if err := conn.get(ctx, what, control.AdminAdoptCS, o.AdoptCSArgs, &doc); err != nil {
		return err
	}
	if !listed {
		if err := held.list(conn.conf, dir, messages); err != nil {
			return cli.Fail("", err, "run this command again")
		}
	}
	return a.print(out, doc, func(t *table) {
		showAdopted(t, doc)
		if listed {
			t.line("If pstorage-csd here has refused it: systemctl reload pstorage-csd@%s",
				conn.conf.Name())
		} else {
			t.line("A running pstorage-csd starts it within a second; otherwise start pstorage-csd.")
		}
	})
}

func showAdopted(t *table, doc control.AdoptCSDoc) {
	for _, c := range doc.CS {
		switch {
		case c.Before == "" || c.Before == c.Node:
			t.line("cs %d belongs to node %s (%s).", c.CS, c.Node, clean(c.Host))
		default:
			t.line("cs %d belongs to node %s (%s) now, and to %s (%s) no more.", c.CS, c.Node,
				clean(c.Host), c.Before, clean(c.BeforeHost))
		}
	}
}
