package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/session"
	"pstorage/mds"
)

type makeMDSOptions struct {
	initialise  bool
	addr        string
	dir         string
	setPassword bool
	fromStdin   bool
	mode        string
}

func newMakeMDS(a *app) *cobra.Command {
	var o makeMDSOptions
	cmd := &cobra.Command{
		Use:   "make-mds",
		Short: "Make a metadata server on this node",
		Long: `Make a metadata server on this node. With -I it is the first one of a new cluster: the
cluster gets its id, its key and its password, and this node gets the key.

Without -I the server joins the cluster that this node has a key of (pstorage auth-node).
It gets everything from the others and votes as soon as it has caught up. Three servers
survive the loss of one, five the loss of two; two or four are no better than one or three.

pstorage-mdsd serves it.`,
		Example: `  pstorage -c test_cluster make-mds -I -a 10.30.100.1 -r /pstorage/test_cluster-mds -p
  pstorage -c test_cluster make-mds -a 10.30.100.2 -r /pstorage/test_cluster-mds`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return makeMDS(cmd.Context(), a, o, passwordInput{o.fromStdin, os.Stdin, cmd.ErrOrStderr()},
				cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.initialise, "init", "I", false, "initialise a new cluster")
	flags.StringVarP(&o.addr, "addr", "a", "",
		"`ADDR[:PORT]` that others reach it at (default port 2510)")
	flags.StringVarP(&o.dir, "dir", "r", "", "`DIR` to keep its data in: new or empty")
	flags.BoolVarP(&o.setPassword, "password", "p", false,
		"set the cluster's password, asked for twice on the terminal")
	flags.StringVar(&o.mode, "mode", "crc", modeHelp)
	flags.BoolVarP(&o.fromStdin, "stdin", "P", false, "read the password from standard input")
	a.addOutput(cmd)
	return cmd
}

// makeMDS checks everything it can before it changes anything, and takes back what it did when a
// later step fails.
func makeMDS(ctx context.Context, a *app, o makeMDSOptions, in passwordInput, out io.Writer) error {
	conf, err := a.newConf()
	if err != nil {
		return err
	}
	if !o.initialise {
		if o.setPassword || o.fromStdin {
			return cli.Usage("a password is set with -I only; this node proves itself by its key")
		}
		return joinMDS(ctx, a, o, out, in.messages)
	}
	if !o.setPassword && !o.fromStdin {
		return cli.Usage("a new cluster needs a password: set it with -p, or -P to read it " +
			"from standard input")
	}
	if err := refuseKnown(conf); err != nil {
		return err
	}
	secure, err := parseMode(o.mode)
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
	password, err := in.askNew(conf.Name())
	if err != nil {
		return err
	}
	err = initCluster(conf, []newServer{{dir, addr}}, password, secure, in.messages)
	if err != nil {
		return err
	}
	doc := madeDoc{Cluster: conf.Name(), Dir: dir.path, Addr: addr.String(), Node: 1}
	return a.print(out, doc, func(t *table) {
		t.line("Cluster %s: metadata server made in %s, address %s.", conf.Name(), dir.path, addr)
		t.line("Start it with pstorage-mdsd; then make chunk servers with: pstorage -c %s make-cs -r DIR",
			conf.Name())
	})
}

// refuseKnown says that this node belongs to a cluster of that name already.
func refuseKnown(conf *cluster.Conf) error {
	if !conf.HasKey() {
		return nil
	}
	return cli.Failf("make cluster "+conf.Name(),
		"this node has a key of a cluster of that name already ("+conf.KeyPath()+")",
		"choose another name with -c, or remove "+conf.Path()+" if that cluster is gone")
}

const modeHelp = "`MODE` of the data's connections: crc or secure (encrypted); see set-config"

func parseMode(mode string) (secure bool, err error) {
	switch mode {
	case "crc", "secure":
		return mode == "secure", nil
	}
	return false, cli.Usage("--mode %s: it is crc or secure", mode)
}

// mdsAddr checks -a: an address of this machine at which nothing listens yet.
func mdsAddr(text string) (netip.AddrPort, error) {
	if text == "" {
		return netip.AddrPort{}, cli.Usage("at which address? give one of this machine with -a IP")
	}
	addr, err := cluster.ParseAddr(text, dataplane.DefaultMDSPort)
	if err != nil {
		return addr, cli.Fail("", err, "")
	}
	if addr.Addr().IsUnspecified() || addr.Port() == 0 {
		return addr, cli.Failf("use address "+text, "others can't connect to it",
			"give an address of this machine with -a IP")
	}
	if err := checkListen(addr); err != nil {
		return addr, err
	}
	return addr, nil
}

// checkListen says whether a daemon could listen at addr now.
func checkListen(addr netip.AddrPort) error {
	listener, err := listenAt(addr)
	if err == nil {
		listener.Close()
	}
	return err
}

func listenAt(addr netip.AddrPort) (net.Listener, error) {
	listener, err := net.Listen("tcp", addr.String())
	if err != nil {
		return nil, cli.Fail(fmt.Sprintf("use address %s", addr), cli.Plain(rootCause(err)),
			advice(err))
	}
	return listener, nil
}

// newServer is a metadata server to be made.
type newServer struct {
	dir  *newDir
	addr netip.AddrPort
}

// initCluster makes a new cluster with its metadata servers, all on this node, and this node's
// configuration. When it fails nothing of that is left. One command at a time does that on a node:
// a cluster of the same name that was made since the caller looked keeps its key.
func initCluster(conf *cluster.Conf, servers []newServer, password string, secure bool,
	messages io.Writer) (err error) {
	unlock, err := lockNode(conf, messages)
	if err != nil {
		return err
	}
	defer unlock()
	if err := refuseKnown(conf); err != nil {
		return err
	}
	node := session.NodeKey{ClusterName: conf.Name()}
	rand.Read(node.Cluster[:]) // never fails
	host, _ := os.Hostname()
	var keys *mds.ClusterKeys
	keys, node.Keys = mds.NewClusterKeys(node.Cluster, host, secure)
	verifier, err := session.NewVerifier(password)
	if err != nil {
		return cli.Fail("set the password", err, "")
	}
	restore, err := conf.Restorer()
	if err != nil {
		return cli.Fail("make cluster "+conf.Name(), err, advice(err))
	}
	undo := []func(){func() { restore() }}
	defer func() {
		for i := len(undo) - 1; i >= 0 && err != nil; i-- {
			undo[i]()
		}
	}()
	var peers []mds.Peer
	var addrs []string
	for i, s := range servers {
		peers = append(peers, mds.Peer{Node: uint32(i + 1), Addr: s.addr.String()})
		addrs = append(addrs, s.addr.String())
	}
	for i, s := range servers {
		if err := s.dir.make(); err != nil {
			return err
		}
		defer s.dir.release()
		undo = append(undo, s.dir.undo)
		err := mds.Format(s.dir.path, mds.FormatOptions{Cluster: node.Cluster,
			ClusterName: conf.Name(), Verifier: verifier, Addr: addrs[i], Node: peers[i].Node,
			Peers: peers, Keys: keys, Secure: secure})
		if err != nil {
			return cli.Fail("make the metadata server in "+s.dir.path, err, advice(err))
		}
		daemon := cluster.Daemon{Dir: s.dir.path, Addr: addrs[i]}
		if err := conf.AddDaemon(cluster.MDS, daemon); err != nil {
			return cli.Fail("", err, advice(err))
		}
	}
	if err := conf.SaveBS(addrs); err != nil {
		return cli.Fail("", err, advice(err))
	}
	// The key comes last: with it the cluster exists on this node.
	return cli.Fail("", conf.SaveKey(node), "")
}
