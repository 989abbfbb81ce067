package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"pstorage/chunk"
	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/session"
)

// firstCSPort is where make-cs begins to look for a port that is free.
const firstCSPort = 2520

type makeCSOptions struct {
	dir      string
	addr     string
	journal  string
	logSize  cli.Size
	tier     uint8
	capacity cli.Size
	location string
}

func newMakeCS(a *app) *cobra.Command {
	var o makeCSOptions
	cmd := &cobra.Command{
		Use:   "make-cs",
		Short: "Make a chunk server on this node",
		Long: `Make a chunk server on this node: one per disk, in a directory on that disk. Its journal
(the log in which every write becomes durable first) lies in the same directory, or on
an SSD with -j.

pstorage-csd serves it; a running one starts it within a second.`,
		Example: `  pstorage -c test_cluster make-cs -r /pstorage/test_cluster-cs
  pstorage -c test_cluster make-cs -r /disk2/cs -a 10.30.100.17 -j /ssd/journals -s 20G -t 1`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return makeCS(cmd.Context(), a, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.dir, "dir", "r", "", "`DIR` to keep chunks in: new or empty")
	flags.StringVarP(&o.addr, "addr", "a", "",
		"`IP[:PORT]` that others reach it at (default: as seen from the metadata servers; "+
			"a port from 2520 on)")
	flags.StringVarP(&o.journal, "journal", "j", "",
		"`PATH` of the journal: a new file, a directory for it, or an empty block device "+
			"(default: in DIR)")
	flags.VarP(&o.logSize, "size", "s",
		"size of the journal file, for example 20G (default: 1G, or less on a small disk)")
	flags.Uint8VarP(&o.tier, "tier", "t", 0, "storage tier, 0 to 3")
	flags.Var(&o.capacity, "capacity", "most bytes for chunks (default: what is free on the disk)")
	flags.StringVar(&o.location, "location", "",
		"`ROOM/ROW/RACK` of it (default: the node's, see location in pstorage-files(5))")
	a.addOutput(cmd)
	return cmd
}

// madeDoc is what make-cs and make-mds print with -o json.
type madeDoc struct {
	Cluster string         `json:"cluster"`
	Dir     string         `json:"dir"`
	Addr    string         `json:"addr"`
	Node    uint32         `json:"node,omitempty"`    // number of a metadata server
	Journal *chunk.Journal `json:"journal,omitempty"` // of a chunk server
}

func makeCS(ctx context.Context, a *app, o makeCSOptions, out, warnings io.Writer) error {
	conf, err := a.conf()
	if err != nil {
		return err
	}
	key, err := conf.LoadKey()
	if err == nil {
		_, err = conf.Credentials(dataplane.RoleCS, 0) // or else nobody could serve it
	}
	if err != nil {
		return cli.Fail("", err, "")
	}
	if o.tier > 3 {
		return cli.Usage("-t %d: tiers are 0 to 3", o.tier)
	}
	// What is chosen from here on is another's only when it is taken in a way that others see.
	unlock, err := lockNode(conf, warnings)
	if err != nil {
		return err
	}
	defer unlock()
	if err := refuseUsedDir(conf, key, o.dir); err != nil {
		return err
	}
	dir, err := checkNewDir(o.dir, "-r")
	if err != nil {
		return err
	}
	if err := refuseListed(conf, dir.path); err != nil {
		return err
	}
	journal, err := journalPath(conf, dir.path, o.journal)
	if err != nil {
		return err
	}
	held, err := csAddr(conf, o.addr)
	if err != nil {
		return err
	}
	defer held.close()
	addr := held.addr
	shown := newProgress(warnings, a.output == "json")
	err = formatCS(dir, chunk.FormatOptions{
		Cluster: key.Cluster, ClusterName: conf.Name(), Addr: addr.String(), LogPath: journal,
		LogSize: int64(o.logSize), Capacity: uint64(o.capacity), Tier: o.tier, Location: o.location,
		Claimed:  unlock,
		Progress: func(done, total int64) { shown.bytes(chunk.StepMake, done, total) },
		Stop:     func() error { return interrupted(ctx, "make a chunk server in "+dir.path) },
	}, func() error { return held.list(conf, dir.path, warnings) })
	shown.end()
	if err != nil {
		return err
	}
	if n := neighbours(dir.path); o.capacity == 0 && n > 0 {
		fmt.Fprintf(warnings, "warning: it shares its file system with other chunk servers of this "+
			"node (%d), and each counts on all of what is free: use --capacity\n", n)
	}
	warnOfFlushes(warnings, dir.path, journal)
	if id, err := chunk.ReadIdentity(dir.path); err == nil {
		fmt.Fprint(warnings, unusedSpace(id.Capacity, uint64(o.capacity), freeSpace(dir.path)))
	}
	doc := madeDoc{Cluster: conf.Name(), Dir: dir.path, Addr: addr.String()}
	if made, err := chunk.JournalOf(dir.path); err == nil {
		doc.Journal = &made
	}
	return a.print(out, doc, func(t *table) {
		t.line("Cluster %s: chunk server made in %s, address %s.", conf.Name(), dir.path, addr)
		t.line("A running pstorage-csd starts it within a second; otherwise start pstorage-csd.")
	})
}

// interrupted says that a signal called off what is being done.
func interrupted(ctx context.Context, what string) error {
	if ctx.Err() == nil {
		return nil
	}
	return cli.Failf(what, "interrupted", "")
}

// freeSpace is how many bytes are free on the file system of dir; 0 if it can't be asked.
func freeSpace(dir string) uint64 {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return 0
	}
	return fs.Bavail * uint64(fs.Bsize)
}

// unusedSpace is a line about what a chunk server that keeps at most so much leaves of what was
// asked for, or of what is free on its disk but for the reserve; "" if that is nothing.
func unusedSpace(capacity, asked, free uint64) string {
	want := asked
	if want == 0 {
		want = free - free/20
	}
	if capacity < chunk.MaxCapacity || want < chunk.MaxCapacity+dataplane.ChunkSize {
		return ""
	}
	return fmt.Sprintf("warning: a chunk server keeps at most %s: %s of its disk stay unused; make "+
		"another one on it for the rest, each with --capacity\n", size(capacity), size(want-capacity))
}

// refuseUsedDir says whose a directory is that already holds a chunk server.
func refuseUsedDir(conf *cluster.Conf, key session.NodeKey, dir string) error {
	if dir == "" {
		return nil // checkNewDir says so
	}
	id, err := chunk.ReadIdentity(dir)
	if err != nil {
		return nil // not a chunk server's; checkNewDir says what else it may be
	}
	what := "make a chunk server in " + dir
	if id.Cluster == key.Cluster.String() {
		return cli.Failf(what, fmt.Sprintf("one of cluster %s lives there already", conf.Name()),
			usedAdvice(conf, dir, id))
	}
	return cli.Failf(what, fmt.Sprintf("it holds a chunk server of another cluster, %q (id %s)",
		clean(id.ClusterName), id.Cluster), "choose another directory with -r")
}

// usedAdvice says what to do with a directory that holds a chunk server of the cluster. One that
// cs.list doesn't have was moved here, or making it was interrupted at its last step.
func usedAdvice(conf *cluster.Conf, dir string, id *chunk.Identity) string {
	path, err := filepath.Abs(dir)
	daemons, listErr := conf.Daemons(cluster.CS)
	listed := slices.ContainsFunc(daemons, func(d cluster.Daemon) bool { return d.Dir == path })
	switch {
	case err != nil || listErr != nil || listed:
		return "choose another directory with -r"
	case id.CS == 0:
		return fmt.Sprintf("it was never served; for that add the line \"%s addr=%s\" to %s", path,
			id.Addr, conf.ListPath(cluster.CS))
	}
	return "if its disk was moved to this node: pstorage adopt-cs -r " + path
}

// refuseListed says that cs.list has a line for dir, in which there is no chunk server: that of a
// disk that isn't mounted, or of one that is gone for good. Which of both only a person knows.
func refuseListed(conf *cluster.Conf, dir string) error {
	daemons, err := conf.Daemons(cluster.CS)
	if err != nil {
		return cli.Fail("", err, "")
	}
	for _, d := range daemons {
		if d.Dir != dir {
			continue
		}
		return cli.Failf("make a chunk server in "+dir,
			conf.ListPath(cluster.CS)+" has a line for one there, which isn't to be found",
			"mount its disk if that isn't mounted; if it was removed from the cluster (rm-cs), "+
				"delete its line, and try again")
	}
	return nil
}

// lockNode keeps other commands from choosing an address or a journal's name on this node.
func lockNode(conf *cluster.Conf, messages io.Writer) (unlock func(), err error) {
	unlock, err = conf.LockNode(func() {
		fmt.Fprintln(messages, "waiting for another command on this node that makes a server")
	})
	return unlock, cli.Fail("", err, advice(err))
}

// heldAddr is the address of a chunk server that is being made. Somebody listens there until
// cs.list has it, so that no other command chooses it.
type heldAddr struct {
	addr     netip.AddrPort
	listener net.Listener
}

func (h *heldAddr) close() { h.listener.Close() }

// list gives the address up and puts the chunk server on cs.list: under the lock of the node, so
// that one or the other is seen by who chooses an address.
func (h *heldAddr) list(conf *cluster.Conf, dir string, messages io.Writer) error {
	unlock, err := lockNode(conf, messages)
	if err != nil {
		return err
	}
	defer unlock()
	h.close()
	return conf.AddDaemon(cluster.CS, cluster.Daemon{Dir: dir, Addr: h.addr.String()})
}

// csAddr returns the address for a new chunk server. The caller has locked the node.
func csAddr(conf *cluster.Conf, given string) (*heldAddr, error) {
	var addr netip.AddrPort
	var err error
	if given != "" {
		addr, err = cluster.ParseAddr(given, 0)
	} else {
		addr, err = ownAddr(conf)
	}
	if err != nil {
		return nil, cli.Fail("", err, "give an address of this machine with -a IP")
	}
	if addr.Addr().IsUnspecified() {
		return nil, cli.Failf("use address "+given, "others can't connect to it",
			"give an address of this machine with -a IP")
	}
	if addr.Port() != 0 {
		return holdAddr(addr)
	}
	taken := localPorts()
	for port := uint16(firstCSPort); port < firstCSPort+10000; port++ {
		addr = netip.AddrPortFrom(addr.Addr(), port)
		if taken[addr] {
			continue
		}
		var held *heldAddr
		if held, err = holdAddr(addr); err == nil {
			return held, nil
		}
		if advice(err) != addrInUseAdvice {
			return nil, err // not an address of this machine: other ports won't help
		}
	}
	return nil, err
}

func holdAddr(addr netip.AddrPort) (*heldAddr, error) {
	listener, err := listenAt(addr)
	if err != nil {
		return nil, err
	}
	return &heldAddr{addr, listener}, nil
}

// ownAddr returns the address that this node has on the way to the metadata servers, port 0.
func ownAddr(conf *cluster.Conf) (netip.AddrPort, error) {
	addrs, err := conf.LoadBS()
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, addr := range addrs {
		// Connecting a UDP socket sends nothing; it asks the kernel for the route.
		conn, dialErr := net.Dial("udp", addr)
		if dialErr != nil {
			err = dialErr
			continue
		}
		local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		conn.Close()
		return netip.AddrPortFrom(local.Addr().Unmap(), 0), nil
	}
	return netip.AddrPort{}, fmt.Errorf("find this node's address: no way to %v: %w", addrs,
		rootCause(err))
}

// localPorts returns the addresses of all chunk servers of this node, running or not.
func localPorts() map[netip.AddrPort]bool {
	taken := make(map[netip.AddrPort]bool)
	for _, d := range localCS() {
		if addr, err := netip.ParseAddrPort(d.Addr); err == nil {
			taken[addr] = true
		}
	}
	return taken
}

// neighbours counts this node's other chunk servers on the file system of dir.
func neighbours(dir string) int {
	var own unix.Stat_t
	if unix.Stat(dir, &own) != nil {
		return 0
	}
	n := 0
	for _, d := range localCS() {
		var other unix.Stat_t
		if d.Dir != dir && unix.Stat(d.Dir, &other) == nil && other.Dev == own.Dev {
			n++
		}
	}
	return n
}

// localCS returns all chunk servers of this node, of all clusters. It is for advice and guesses:
// what can't be read is left out.
func localCS() []cluster.Daemon {
	var all []cluster.Daemon
	names, _ := cluster.List(cluster.EtcDir())
	for _, name := range names {
		conf, err := cluster.At(cluster.EtcDir(), name)
		if err != nil {
			continue
		}
		daemons, _ := conf.Daemons(cluster.CS)
		all = append(all, daemons...)
	}
	return all
}

// formatCS makes the chunk server, and list puts it on cs.list. When that fails nothing is left.
func formatCS(dir *newDir, o chunk.FormatOptions, list func() error) error {
	if err := dir.make(); err != nil {
		return err
	}
	defer dir.release()
	if err := chunk.Format(dir.path, o); err != nil {
		dir.removeCreated() // Format itself has removed what it made
		return cli.Fail("make a chunk server in "+dir.path, err, advice(err))
	}
	if err := list(); err != nil {
		dir.undo()
		if info, err := os.Stat(o.LogPath); err == nil && info.Mode().IsRegular() {
			os.Remove(o.LogPath) // Format made it, and takes no file that is there
		}
		return cli.Fail("", err, advice(errors.Unwrap(err)))
	}
	return nil
}
