package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/session"
)

const authTimeout = 5 * time.Second // for one metadata server

func newAuthNode(a *app) *cobra.Command {
	var bs, roles []string
	var fromStdin bool
	cmd := &cobra.Command{
		Use:   "auth-node",
		Short: "Make this node a member of a cluster, by its password",
		Long: `Make this node a member of a cluster: prove that you know the cluster's password, which
isn't sent, and store the node's key. Without -b the metadata servers in bs.list are
asked, or those that pstorage discover finds if there is no bs.list.

The key says what the node may be: a client (mount, export), an admin (the commands that
change something), a chunk server (cs), a metadata server (mds). Give hosts that only use
the storage --role client: then their key is of no use for anything else. A node has one key for
a cluster, which a new one replaces: that of a node with servers is good for mounts, too.`,
		Example: `  pstorage -c test_cluster auth-node -b 10.30.100.1
  pstorage -c test_cluster auth-node -b 10.30.100.1 --role client`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bits, err := parseRoles(roles)
			if err != nil {
				return err
			}
			in := passwordInput{fromStdin, os.Stdin, cmd.ErrOrStderr()}
			return authNode(cmd.Context(), a, bs, bits, in, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringSliceVarP(&bs, "bs", "b", nil,
		"`ADDR[:PORT]` of a metadata server; stored in bs.list (may be given several times)")
	cmd.Flags().StringSliceVar(&roles, "role", []string{"all"},
		"what the node may be: client, admin, cs, mds (`ROLE`,...), or all")
	cmd.Flags().BoolVarP(&fromStdin, "stdin", "P", false, "read the password from standard input")
	a.addOutput(cmd)
	return cmd
}

// parseRoles returns the bits of roles. A chunk server's host may use the storage, too.
func parseRoles(names []string) (bits uint8, err error) {
	client := session.RoleBit(dataplane.RoleClient)
	known := map[string]uint8{"client": client, "all": session.AllRoles,
		"admin": client | session.RoleBit(dataplane.RoleAdmin),
		"cs": client | session.RoleBit(dataplane.RoleCS) |
			session.RoleBit(dataplane.RoleSupervisor),
		"mds": session.RoleBit(dataplane.RoleMDS)}
	for _, name := range names {
		if known[name] == 0 {
			return 0, cli.Usage("--role %s: client, admin, cs, mds or all", name)
		}
		bits |= known[name]
	}
	if bits == 0 {
		return 0, cli.Usage("--role: what may this node be?")
	}
	return bits, nil
}

func authNode(ctx context.Context, a *app, bs []string, roles uint8, in passwordInput,
	out io.Writer) error {
	conf, err := a.newConf()
	if err != nil {
		return err
	}
	if err := refuseLesserKey(conf, roles); err != nil {
		return err
	}
	if len(bs) == 0 {
		if bs, err = discoverAddrs(ctx, conf); err != nil {
			return err
		}
	}
	addrs, err := authAddrs(conf, bs)
	if err != nil {
		return err
	}
	had, err := conf.LoadKey()
	hadKey := err == nil
	if err != nil && dataplane.KindOf(err) != dataplane.NotFound {
		return cli.Fail("", err, "mend or remove "+conf.KeyPath())
	}
	password, err := in.ask(conf.Name())
	if err != nil {
		return err
	}
	node, err := proveToAny(ctx, addrs, conf.Name(), password, roles)
	if err != nil {
		return err
	}
	if hadKey && had.Cluster != node.Cluster {
		return cli.Failf("authenticate this node to cluster "+conf.Name(),
			"it has the key of another cluster of the same name",
			"check the address; or remove "+conf.Path()+" if the old cluster is gone")
	}
	if err := saveAuth(conf, addrs, *node); err != nil {
		return err
	}
	doc := joinedDoc{conf.Name(), conf.KeyPath(), addrs}
	return a.print(out, doc, func(t *table) {
		t.line("This node belongs to cluster %s (key in %s).", conf.Name(), conf.KeyPath())
	})
}

// refuseLesserKey says that this node has servers of the cluster that couldn't be served with a key
// of these roles, which would replace the one that there is.
func refuseLesserKey(conf *cluster.Conf, roles uint8) error {
	for _, server := range []struct {
		kind cluster.DaemonKind
		role dataplane.Role
	}{{cluster.CS, dataplane.RoleCS}, {cluster.MDS, dataplane.RoleMDS}} {
		daemons, err := conf.Daemons(server.kind)
		if err != nil {
			return cli.Fail("", err, "")
		}
		if len(daemons) > 0 && roles&session.RoleBit(server.role) == 0 {
			return cli.Failf("authenticate this node to cluster "+conf.Name(),
				fmt.Sprintf("it has servers (%s) that need a key with the role %s, and it has one key",
					conf.ListPath(server.kind), server.kind),
				fmt.Sprintf("add %s to --role, or leave --role out", server.kind))
		}
	}
	return nil
}

// joinedDoc is what auth-node -o json prints.
type joinedDoc struct {
	Cluster string   `json:"cluster"`
	Key     string   `json:"key"` // file
	BS      []string `json:"bs"`  // metadata servers, "ip:port"
}

// authAddrs returns the addresses to ask: those given, then those known.
func authAddrs(conf *cluster.Conf, given []string) ([]string, error) {
	var addrs []string
	for _, text := range given {
		addr, err := cluster.ParseAddr(text, dataplane.DefaultMDSPort)
		if err != nil {
			return nil, cli.Fail("", err, "correct -b")
		}
		addrs = append(addrs, addr.String())
	}
	known, err := conf.LoadBS()
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(addrs) == 0:
		return nil, cli.Failf("find cluster "+conf.Name(),
			"this node doesn't know its metadata servers",
			"give the address of one with -b ADDR")
	case err != nil && len(addrs) == 0:
		return nil, cli.Fail("", err, "give the address of a metadata server with -b ADDR")
	}
	for _, addr := range known {
		if !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	return addrs, nil
}

// proveToAny proves the password to the first metadata server that answers.
func proveToAny(ctx context.Context, addrs []string, name, password string, roles uint8) (
	*session.NodeKey, error) {
	what := "authenticate this node to cluster " + name
	var last error
	for _, addr := range addrs {
		node, err := proveTo(ctx, addr, name, password, roles)
		if err == nil {
			return node, nil
		}
		switch dataplane.KindOf(err) {
		case dataplane.Denied:
			return nil, cli.Fail("", err, "try again with the cluster's password")
		case dataplane.Overloaded:
			return nil, cli.Fail("", err, "")
		}
		last = err
		if ctx.Err() != nil {
			return nil, cli.Failf(what, "interrupted", "")
		}
	}
	if dataplane.KindOf(last) == dataplane.WrongCluster {
		return nil, cli.Fail("", last, "check the name after -c and the address")
	}
	return nil, cli.Fail(what, last,
		"check the address (-b) and that pstorage-mdsd runs there")
}

func proveTo(ctx context.Context, addr, name, password string, roles uint8) (*session.NodeKey,
	error) {
	ctx, cancel := context.WithTimeout(ctx, authTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, dataplane.E("connect to "+addr, dataplane.Unreachable, rootCause(err))
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return session.AuthNode(ctx, conn, name, password, host, roles) // closes conn
}

// saveAuth stores the key and the addresses. When that fails the old state is there again.
func saveAuth(conf *cluster.Conf, addrs []string, node session.NodeKey) error {
	fresh := !conf.HasKey()
	oldBS, oldErr := conf.LoadBS()
	if !slices.Equal(oldBS, addrs) {
		if err := conf.SaveBS(addrs); err != nil {
			return cli.Fail("", err, advice(err))
		}
	}
	err := conf.SaveKey(node)
	switch {
	case err == nil:
		return nil
	case oldErr == nil:
		conf.SaveBS(oldBS)
	case fresh:
		os.Remove(conf.BSPath())
		os.Remove(conf.Path()) // only if it is empty
	}
	return cli.Fail("", err, advice(err))
}
