package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/cmd/metrics"
	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/control"
	"pstorage/dataplane/nbd"
	"pstorage/uring"
)

const (
	exportReach = 15 * time.Second // for the metadata servers to answer
	exportDrain = 5 * time.Second  // for requests under way, after SIGTERM
	exportPool  = 256 << 20        // bytes of buffers at most
	nbdPort     = "10809"
)

type nbdOptions struct {
	sockets  []string
	access   socketAccess
	listen   []string
	readOnly bool
	create   cli.Size
	metrics  metrics.Flags
	log      cli.LogFlags
}

func newExport(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Serve files of the cluster as block devices",
		Long: `Serve files of the cluster as block devices, by protocols that hypervisors and block
drivers speak.`,
		Example: `  pstorage export nbd /vm/disk1 --socket /run/disk1.sock`,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cli.Usage("export by which protocol? see %s --help", cmd.CommandPath())
		},
	}
	cmd.AddCommand(newExportNBD(a))
	return cmd
}

func newExportNBD(a *app) *cobra.Command {
	o := &nbdOptions{}
	cmd := &cobra.Command{
		Use:   "nbd FILE...",
		Short: "Serve files as network block devices (NBD)",
		Long: `Serve files as network block devices (NBD), until SIGTERM or SIGINT. FILE is a path in the
cluster; its export has the same name without the first slash, and the first one is also the
export without a name. Without --socket and --listen the service is on loopback, port 10809.

NBD knows no passwords: a unix socket is for the user who runs this, and for whom --socket-mode
and --socket-group let in, and an address other than loopback is for everybody who can reach it.

A client may have several connections, write with FUA, trim, zero and resize. A file that
grew is seen by clients that connect after that.`,
		Example: `  pstorage export nbd /vm/disk1 --create 20G --socket /run/disk1.sock
  qemu-system-x86_64 -drive file=nbd+unix:///vm/disk1?socket=/run/disk1.sock,format=raw
  qemu-img convert -n -O raw debian.qcow2 'nbd+unix:///vm/disk1?socket=/run/disk1.sock'
  fio --name=t --ioengine=nbd --uri='nbd+unix:///vm/disk1?socket=/run/disk1.sock' --rw=randread`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usage("which file of the cluster? see %s --help", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return exportNBD(cmd.Context(), a, o, args, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.sockets, "socket", nil, "serve on a unix socket at `PATH`")
	o.access.add(cmd)
	f.StringArrayVar(&o.listen, "listen", nil, "serve on `IP[:PORT]` (port "+nbdPort+")")
	f.BoolVar(&o.readOnly, "read-only", false, "refuse writes")
	f.Var(&o.create, "create", "make files that don't exist or are empty, of this `SIZE` (sparse)")
	o.metrics.Add(cmd, metrics.PortExport)
	o.log.Add(cmd)
	return cmd
}

// addresses are where to listen, in the form of nbd.Server.Listen.
func (o *nbdOptions) addresses() (list []string, open bool, err error) {
	for _, s := range o.sockets {
		list = append(list, "unix:"+s)
	}
	listen := o.listen
	if len(list)+len(listen) == 0 {
		listen = []string{"127.0.0.1"}
	}
	for _, s := range listen {
		host, port, err := net.SplitHostPort(s)
		if err != nil {
			host, port = strings.Trim(s, "[]"), nbdPort
		}
		ip := net.ParseIP(host)
		if ip == nil {
			return nil, false, cli.Usage("--listen %s: not an IP address with or without a port", s)
		}
		open = open || !ip.IsLoopback()
		list = append(list, net.JoinHostPort(host, port))
	}
	return list, open, nil
}

func exportNBD(ctx context.Context, a *app, o *nbdOptions, files []string, out io.Writer) error {
	addrs, open, err := o.addresses()
	if err != nil {
		return err
	}
	if err := o.access.check(o.sockets); err != nil {
		return err
	}
	for i, f := range files {
		if !strings.HasPrefix(f, "/") {
			return cli.Usage("%s: a path in the cluster begins with a slash", f)
		}
		files[i] = path.Clean(f)
	}
	if o.create > client.MaxFileSize {
		return cli.Usage("--create %s: a file has %s at most", &o.create,
			cli.Bytes(client.MaxFileSize))
	}
	conf, err := a.conf()
	if err != nil {
		return err
	}
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		return cli.Fail("", err, "")
	}
	if _, err := conf.LoadBS(); err != nil {
		return cli.Fail("", err, "")
	}
	log, err := o.log.Open(os.Stderr)
	if err != nil {
		return err
	}
	removePID, err := o.log.WritePID()
	if err != nil {
		return err
	}
	defer removePID()
	cli.SpareProcs() // the client's loop keeps its processor
	within, cancel := context.WithTimeout(ctx, exportReach)
	c, err := client.Open(within, client.ClientOptions{Cred: &cred, MDSAddrs: cli.MDSAddrs(conf),
		Log: log, Loop: uring.LoopOptions{PoolSize: exportPool}})
	cancel()
	if err != nil {
		return cli.Fail("reach cluster "+conf.Name(), err,
			"check that pstorage-mdsd runs and that "+conf.BSPath()+" has its address")
	}
	defer c.Close()
	go cli.KeepBS(ctx, conf, c.Control(), log)
	err = o.metrics.Serve(ctx, log, metrics.Client(c, "cluster", conf.Name()))
	if err != nil {
		return err
	}
	var exports []nbd.Export
	for _, name := range files {
		f, err := openExport(ctx, c, name, o)
		if err != nil {
			return err
		}
		defer f.Close()
		exports = append(exports, nbd.Export{Name: strings.TrimPrefix(name, "/"),
			Description: "pstorage " + conf.Name() + " " + name, File: f, ReadOnly: o.readOnly})
	}
	srv, err := nbd.New(nbd.Options{Client: c, Exports: exports, Log: log})
	if err != nil {
		return cli.Fail("", err, "")
	}
	for i, addr := range addrs {
		if addrs[i], err = srv.Listen(addr); err != nil {
			return cli.Fail("", err, "choose another address with --socket or --listen")
		}
		if path, local := strings.CutPrefix(addr, "unix:"); local {
			if err := o.access.allow(path); err != nil {
				return err
			}
		}
	}
	if open {
		log.Warn("whoever can reach this port can read and write the files: NBD has no passwords")
	}
	for i := range addrs {
		fmt.Fprintf(out, "serving %s\n", exportURI(addrs[i], exports[0].Name))
	}
	cli.Notify("READY=1")
	go cli.Watchdog(ctx, log, metrics.ClientAlive(c))
	select {
	case <-ctx.Done():
	case <-c.Loop().Done():
		return cli.Failf("serve "+strings.Join(files, ", "), "the event loop ended", "see the log")
	}
	cli.Notify("STOPPING=1")
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), exportDrain)
	defer cancel()
	return srv.Close(end)
}

// openExport opens a file of the cluster, and makes it first if it should. An empty one, as an
// interrupted attempt leaves it, is given its size.
func openExport(ctx context.Context, c *client.Client, name string, o *nbdOptions) (*client.File,
	error) {
	f, err := c.OpenPath(ctx, name)
	makes := o.create > 0 && !o.readOnly
	if dataplane.KindOf(err) == dataplane.NotFound && makes {
		var dir, a *control.Attr
		if dir, err = c.Resolve(ctx, path.Dir(name)); err != nil {
			return nil, cli.Fail("make "+name, err, "make its directory first, on a mount")
		}
		a, err = c.Create(ctx, &control.CreateReq{Parent: dir.File, Name: path.Base(name),
			Type: control.TypeFile, Mode: 0o600, Exclusive: true})
		if err != nil {
			return nil, cli.Fail("make "+name, err, "")
		}
		f, err = c.OpenAttr(a)
	}
	if err == nil && f.Size() == 0 && makes {
		if err = f.Grow(ctx, uint64(o.create)); err != nil {
			f.Close()
		}
	}
	switch {
	case dataplane.KindOf(err) == dataplane.NotFound:
		return nil, cli.Fail("open "+name, err, "make it with --create SIZE, or on a mount")
	case err != nil:
		return nil, cli.Fail("open "+name, err, "")
	case f.Size() == 0:
		f.Close()
		return nil, cli.Fail("open "+name, errors.New("the file is empty"),
			"give it a size with --create SIZE, or by truncate -s SIZE on a mount")
	}
	return f, nil
}

// exportURI is how clients name an export.
func exportURI(addr, name string) string {
	name = escaped(name)
	if sock, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "nbd+unix:///" + name + "?socket=" + escaped(sock)
	}
	return "nbd://" + addr + "/" + name
}

// escaped returns a path as it is written in a URI, also in its query.
func escaped(path string) string {
	path = strings.TrimPrefix((&url.URL{Path: "/" + path}).EscapedPath(), "/")
	return strings.NewReplacer("&", "%26", "+", "%2B", ";", "%3B").Replace(path)
}
