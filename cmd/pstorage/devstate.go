package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mrand "math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"pstorage/chunk"
	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

// A development cluster's directory:
//
//	lock        held by the running command; its process id
//	password    0600
//	unfinished  as long as no start of the cluster has set its policy
//	etc/        the configuration: PSTORAGE_ETC
//	mds1/ cs1/ cs2/ ...   the daemons' data
//	log/ run/   their messages and process ids
//	mnt/        the mount, unless --mount says otherwise
type dev struct {
	dir  string
	etc  string
	conf *cluster.Conf
	lock *os.File
	out  io.Writer

	mds   []devDaemon
	cs    []devDaemon
	fresh bool // the policy isn't set yet
}

// devDaemon is one daemon of a development cluster.
type devDaemon struct {
	name string // "mds1", "cs2"
	dir  string
	kind cluster.DaemonKind
}

// Ports are taken from a range that the kernel doesn't give to outgoing connections by default.
const (
	devFirstPort = 20000
	devPorts     = 10000
)

// openDev locks the directory, which it makes if necessary.
func openDev(o devOptions, out io.Writer) (*dev, error) {
	d := &dev{dir: o.dir, etc: filepath.Join(o.dir, "etc"), out: out}
	what := "use directory " + d.dir
	advice := "choose another one with --dir"
	entries, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Fail(what, cli.Plain(err), advice)
	}
	if len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(d.dir, "lock")); err != nil {
			return nil, cli.Failf(what, fmt.Sprintf(
				"it isn't empty (it has %q) and holds no development cluster", entries[0].Name()), advice)
		}
	}
	for _, sub := range []string{"", "etc", "log", "run"} {
		if err := os.MkdirAll(filepath.Join(d.dir, sub), 0o755); err != nil {
			return nil, cli.Fail(what, cli.Plain(err), advice)
		}
	}
	// One name for the directory, whichever links led to it: the lists have absolute paths.
	if d.dir, err = filepath.EvalSymlinks(d.dir); err != nil {
		return nil, cli.Fail(what, cli.Plain(err), advice)
	}
	d.etc = filepath.Join(d.dir, "etc")
	// It is on this machine alone: nobody is to be asked on the network where it is.
	if err := os.WriteFile(filepath.Join(d.etc, "discovery"), []byte("list\n"), 0o644); err != nil {
		return nil, cli.Fail(what, cli.Plain(err), advice)
	}
	d.lock, err = os.OpenFile(filepath.Join(d.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, cli.Fail(what, cli.Plain(err), advice)
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(d.lock, 32))
		d.lock.Close()
		return nil, cli.Failf("run the cluster in "+d.dir,
			fmt.Sprintf("it is running already (process %s)", clean(string(trimEnd(holder)))),
			"stop that one, or choose another directory with --dir")
	}
	d.lock.Truncate(0)
	d.lock.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	if d.conf, err = cluster.At(d.etc, devCluster); err != nil {
		return nil, cli.Fail("", err, "")
	}
	// Everything below, in this process and its children, means this cluster.
	if err := os.Setenv(cluster.EtcEnv, d.etc); err != nil {
		return nil, cli.Fail("", err, "")
	}
	return d, nil
}

func trimEnd(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}

func (d *dev) close() { d.lock.Close() } // which unlocks it

func (d *dev) logFile(name string) string { return filepath.Join(d.dir, "log", name+".log") }
func (d *dev) unfinished() string         { return filepath.Join(d.dir, "unfinished") }
func (d *dev) pidFile(name string) string { return filepath.Join(d.dir, "run", name+".pid") }

// ensure makes the cluster, or what is missing of it, and learns its daemons.
func (d *dev) ensure(ctx context.Context, o devOptions) error {
	if !d.conf.HasKey() {
		if err := d.create(o.mds, o.secure); err != nil {
			return err
		}
	}
	// Also of a cluster that an earlier run made and didn't get to start.
	_, err := os.Stat(d.unfinished())
	d.fresh = err == nil
	key, err := d.conf.LoadKey()
	if err != nil {
		return cli.Fail("", err, "")
	}
	have, err := d.conf.Daemons(cluster.CS)
	if err != nil {
		return cli.Fail("", err, "")
	}
	if servers, err := d.conf.Daemons(cluster.MDS); err != nil {
		return cli.Fail("", err, "")
	} else if o.mdsGiven && o.mds != len(servers) {
		return cli.Failf(fmt.Sprintf("run with %d metadata servers", o.mds),
			fmt.Sprintf("this cluster has %d, and that can't be changed yet", len(servers)),
			"leave --mds out, or choose another directory with --dir")
	}
	if o.csGiven && o.cs < len(have) {
		return cli.Failf(fmt.Sprintf("run with %d chunk servers", o.cs),
			fmt.Sprintf("this cluster has %d, and they can't be removed yet", len(have)),
			"leave --cs out, or choose another directory with --dir")
	}
	if len(have) == 0 || o.csGiven {
		if err := d.addCS(ctx, o, key.Cluster, len(have)); err != nil {
			return err
		}
	}
	return d.load()
}

// create makes a new cluster with n metadata servers.
func (d *dev) create(n int, secure bool) error {
	var servers []newServer
	used := make(map[netip.AddrPort]bool)
	for i := range n {
		path := filepath.Join(d.dir, fmt.Sprintf("mds%d", i+1))
		if entries, err := os.ReadDir(path); err == nil && len(entries) > 0 {
			return cli.Failf("make the cluster in "+d.dir,
				"there is a metadata server's data but no key for it (making the cluster was "+
					"interrupted, or etc was lost)",
				"put etc back; or if the data isn't needed remove "+d.dir)
		}
		dir, err := checkNewDir(path, "--dir")
		if err != nil {
			return err
		}
		addr, err := freeAddr(used)
		if err != nil {
			return err
		}
		used[addr] = true
		servers = append(servers, newServer{dir, addr})
	}
	fmt.Fprintf(d.out, "making a new cluster in %s\n", d.dir)
	secret := make([]byte, 16)
	rand.Read(secret) // never fails
	password := hex.EncodeToString(secret)
	err := os.WriteFile(filepath.Join(d.dir, "password"), []byte(password+"\n"), 0o600)
	if err != nil {
		return cli.Fail("write the password", cli.Plain(err), "")
	}
	if err = os.WriteFile(d.unfinished(), nil, 0o644); err != nil {
		return cli.Fail("make the cluster in "+d.dir, cli.Plain(err), "")
	}
	return initCluster(d.conf, servers, password, secure, d.out)
}

// addCS makes the chunk servers above the have that there are, all at the same time.
func (d *dev) addCS(ctx context.Context, o devOptions, id dataplane.ClusterID, have int) error {
	capacity := uint64(o.size)
	if capacity == 0 {
		var err error
		if capacity, err = d.fairShare(o.cs-have, uint64(o.logSize)); err != nil {
			return err
		}
	}
	used := make(map[netip.AddrPort]bool)
	var wg sync.WaitGroup
	errs := make([]error, o.cs)
	for i := have; i < o.cs; i++ {
		addr, err := freeAddr(used)
		if err != nil {
			return err
		}
		used[addr] = true
		wg.Go(func() { errs[i] = d.makeOne(o, id, i+1, capacity, addr) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (d *dev) makeOne(o devOptions, id dataplane.ClusterID, number int, capacity uint64,
	addr netip.AddrPort) error {
	dir, err := checkNewDir(filepath.Join(d.dir, fmt.Sprintf("cs%d", number)), "--dir")
	if err != nil {
		return err
	}
	return formatCS(dir, chunk.FormatOptions{Cluster: id, ClusterName: devCluster,
		Capacity: capacity, LogSize: int64(o.logSize), Addr: addr.String()},
		func() error {
			return d.conf.AddDaemon(cluster.CS, cluster.Daemon{Dir: dir.path, Addr: addr.String()})
		})
}

// fairShare returns the capacity of each of n new chunk servers on this file system: together
// they leave a fifth of it free, since nothing else keeps them from filling it.
func (d *dev) fairShare(n int, logSize uint64) (uint64, error) {
	if n <= 0 {
		return 0, nil
	}
	var fsInfo unix.Statfs_t
	if err := unix.Statfs(d.dir, &fsInfo); err != nil {
		return 0, cli.Fail("look at the space in "+d.dir, err, "")
	}
	free := fsInfo.Bavail * uint64(fsInfo.Bsize)
	logs := uint64(n) * logSize
	if free < logs+uint64(n)*(1<<30) {
		return 0, cli.Failf(fmt.Sprintf("make %d chunk servers in %s", n, d.dir),
			fmt.Sprintf("only %s are free there, at least 1 GiB and a journal of %s are needed for each",
				cli.Bytes(free), cli.Bytes(logSize)), "make room, or choose another directory with --dir")
	}
	share := (free - logs) / 5 * 4 / uint64(n)
	return max(share/dataplane.ChunkSize*dataplane.ChunkSize, 1<<30), nil
}

// setPolicy fits a new cluster's policy to one machine: every copy on another "disk" instead of
// another host, and no more copies than there are chunk servers.
func (d *dev) setPolicy(ctx context.Context) error {
	if !d.fresh {
		return nil
	}
	conn, err := (&app{cluster: devCluster}).admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	domain, replicas := "disk", min(3, len(d.cs))
	minimum := max(1, replicas-1)
	const what = "set the policy"
	err = conn.get(ctx, what, control.AdminSetAttr, control.SetAttrArgs{Path: "/",
		Replicas: &replicas, Minimum: &minimum, FailureDomain: &domain}, nil)
	if err != nil {
		return err
	}
	return cli.Fail(what, os.Remove(d.unfinished()), "")
}

// freeAddr returns a loopback address at which nothing listens, and that isn't in used.
func freeAddr(used map[netip.AddrPort]bool) (netip.AddrPort, error) {
	var err error
	for range 100 {
		port := uint16(devFirstPort + mrand.IntN(devPorts))
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
		if used[addr] {
			continue
		}
		if err = checkListen(addr); err == nil {
			return addr, nil
		}
	}
	return netip.AddrPort{}, cli.Fail("find a free port on the loopback interface", err, "")
}

// load learns the daemons from the configuration.
func (d *dev) load() error {
	var err error
	if d.mds, err = d.daemons(cluster.MDS); err != nil {
		return err
	}
	d.cs, err = d.daemons(cluster.CS)
	return err
}

func (d *dev) daemons(kind cluster.DaemonKind) ([]devDaemon, error) {
	what := "find the cluster in " + d.dir
	list, err := d.conf.Daemons(kind)
	if err != nil {
		return nil, cli.Fail(what, err, "")
	}
	if len(list) == 0 {
		return nil, cli.Failf(what, d.conf.ListPath(kind)+" is empty", "")
	}
	var daemons []devDaemon
	for _, c := range list {
		if filepath.Dir(c.Dir) != d.dir {
			return nil, cli.Failf(what,
				"its configuration names "+c.Dir+": the directory was moved or copied",
				"move it back: a copy of a running cluster's identity would damage data")
		}
		daemons = append(daemons, devDaemon{filepath.Base(c.Dir), c.Dir, kind})
	}
	// They were made at the same time, so the list has them in any order.
	slices.SortFunc(daemons, func(a, b devDaemon) int {
		return cmp.Or(len(a.name)-len(b.name), strings.Compare(a.name, b.name))
	})
	return daemons, nil
}
