package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/mds"
)

// joinMDS makes a metadata server of a cluster that exists. It asks the cluster for a number first;
// when a later step fails that is taken back.
func joinMDS(ctx context.Context, a *app, o makeMDSOptions, out, messages io.Writer) (err error) {
	conf, err := a.conf()
	if err != nil {
		return err
	}
	addr, err := mdsAddr(o.addr)
	if err != nil {
		return err
	}
	dir, err := checkNewDir(o.dir, "-r")
	if err != nil {
		return err
	}
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	what := "join cluster " + conf.Name()
	// Until mds.list has it: a number is given again to who asks for the same address.
	unlock, err := lockNode(conf, messages)
	if err != nil {
		return err
	}
	defer unlock()
	var doc control.AddMDSDoc
	err = conn.get(ctx, what, control.AdminAddMDS, control.AddMDSArgs{Addr: addr.String()}, &doc)
	if err != nil {
		return err
	}
	if err := refuseTwin(conf, addr, doc.Node); err != nil {
		return err
	}
	undo := []func(){func() {
		conn.get(context.WithoutCancel(ctx), what, control.AdminRemoveMDS,
			control.RemoveMDSArgs{Node: doc.Node}, nil)
	}}
	defer func() {
		for i := len(undo) - 1; i >= 0 && err != nil; i-- {
			undo[i]()
		}
	}()
	var verifier session.Verifier
	if len(doc.Verifier) > 0 {
		if err := json.Unmarshal(doc.Verifier, &verifier); err != nil {
			return cli.Fail(what, err, "is it of another version than this program?")
		}
	}
	if err := dir.make(); err != nil {
		return err
	}
	defer dir.release()
	undo = append(undo, dir.undo)
	if err := formatJoined(conf, dir.path, addr, &doc, verifier); err != nil {
		return err
	}
	if err := conf.AddDaemon(cluster.MDS, cluster.Daemon{Dir: dir.path,
		Addr: addr.String()}); err != nil {
		return cli.Fail("", err, advice(err))
	}
	undo = append(undo, func() { conf.RemoveDaemon(cluster.MDS, dir.path) })
	var addrs []string
	for _, m := range doc.MDS {
		addrs = append(addrs, m.Addr)
	}
	if err := conf.SaveBS(addrs); err != nil {
		return cli.Fail("", err, advice(err))
	}
	made := madeDoc{Cluster: conf.Name(), Dir: dir.path, Addr: addr.String(), Node: doc.Node}
	return a.print(out, made, func(t *table) {
		t.line("Cluster %s: metadata server %d made in %s, address %s.", conf.Name(), doc.Node,
			dir.path, addr)
		t.line("Start it with pstorage-mdsd; it votes when it has caught up.")
		if why := mds.VoterWarning(len(doc.MDS)); why != "" {
			t.line("Warning: %s", why)
		}
	})
}

// refuseTwin says that this node has the metadata server of that number already, in another
// directory. Two directories of one server, each with votes of its own, could give the cluster two
// leaders.
func refuseTwin(conf *cluster.Conf, addr netip.AddrPort, node uint32) error {
	daemons, err := conf.Daemons(cluster.MDS)
	if err != nil {
		return cli.Fail("", err, "")
	}
	for _, d := range daemons {
		if d.Addr != addr.String() {
			continue
		}
		if number, err := mds.NodeIn(d.Dir); err == nil && number == node {
			return cli.Failf("make a metadata server at "+d.Addr,
				fmt.Sprintf("number %d was made for that address already, in %s", node, d.Dir),
				fmt.Sprintf("start it with pstorage-mdsd, or first: pstorage rm-mds %d", node))
		}
	}
	return nil
}

// formatJoined makes the directory of a server that the cluster knows already.
func formatJoined(conf *cluster.Conf, dir string, addr netip.AddrPort, doc *control.AddMDSDoc,
	verifier session.Verifier) error {
	cred, err := conf.Credentials(dataplane.RoleMDS, 0)
	if err != nil {
		return cli.Fail("", err, "")
	}
	err = mds.Format(dir, mds.FormatOptions{Cluster: cred.Cluster, ClusterName: conf.Name(),
		Verifier: verifier, Addr: addr.String(), Node: doc.Node, Join: true})
	return cli.Fail("make the metadata server in "+dir, err, advice(err))
}

func newRemoveMDS(a *app) *cobra.Command {
	var args control.RemoveMDSArgs
	cmd := &cobra.Command{
		Use:   "rm-mds NUMBER",
		Short: "Take a metadata server out of the cluster",
		Long: `Take a metadata server out of the cluster. NUMBER is its ID in pstorage list-services. The
server stops by itself, and its directory can't be used again; if it was made on this
node, pstorage-mdsd forgets it.

It is refused when too few of the servers that would be left answer, and for the last one.`,
		Example: `  pstorage list-services
  pstorage rm-mds 2`,
		Args: func(cmd *cobra.Command, list []string) error {
			if len(list) != 1 {
				return cli.Usage("one number of a metadata server is needed, %d were given", len(list))
			}
			n, err := strconv.ParseUint(list[0], 10, 32)
			if err != nil || n == 0 {
				return cli.Usage("%q is no number of a metadata server; see pstorage list-services",
					list[0])
			}
			args.Node = uint32(n)
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return removeMDS(cmd.Context(), a, args, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&args.Force, "force", false,
		"also when another server doesn't answer")
	a.addOutput(cmd)
	return cmd
}

func removeMDS(ctx context.Context, a *app, args control.RemoveMDSArgs, out io.Writer) error {
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	what := fmt.Sprintf("remove metadata server %d", args.Node)
	var doc control.RemoveMDSDoc
	if err := conn.get(ctx, what, control.AdminRemoveMDS, args, &doc); err != nil {
		return err
	}
	var addrs []string
	for _, m := range doc.MDS {
		addrs = append(addrs, m.Addr)
	}
	if err := conn.conf.SaveBS(addrs); err != nil {
		return cli.Fail("", err, advice(err))
	}
	daemons, err := conn.conf.Daemons(cluster.MDS)
	if err != nil {
		return cli.Fail("", err, advice(err))
	}
	dir := ""
	for _, d := range daemons {
		if d.Addr == doc.Removed.Addr {
			dir = d.Dir
			if err := conn.conf.RemoveDaemon(cluster.MDS, d.Dir); err != nil {
				return cli.Fail("", err, advice(err))
			}
		}
	}
	return a.print(out, doc, func(t *table) {
		t.line("Metadata server %d at %s was removed; %d left.", args.Node, doc.Removed.Addr,
			len(doc.MDS))
		if dir != "" {
			t.line("Its directory %s is of no use any more.", dir)
		}
		if why := mds.VoterWarning(len(doc.MDS)); why != "" {
			t.line("Warning: %s", why)
		}
	})
}
