package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"pstorage/cmd/cli"
	"pstorage/cmd/web"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/session"
	"pstorage/mds"
)

// server is one metadata server to run.
type server struct {
	cluster string
	daemon  cluster.Daemon
	cred    session.Credentials
	conf    *cluster.Conf
}

// serve runs the chosen metadata servers until ctx ends. If one fails the others go on; the
// error is returned when all have ended.
func serve(ctx context.Context, o mdsdOptions, out io.Writer) error {
	mds.TuneRuntime()
	servers, err := chooseServers(cluster.EtcDir(), o)
	if err != nil {
		return err
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
	var observed observers
	if err := o.metrics.Serve(ctx, log, observed.collect); err != nil {
		return err
	}
	clusters, closeClients, err := webClusters(ctx, o, servers)
	if err != nil {
		return err
	}
	defer closeClients()
	if err := o.web.Serve(ctx, log, func() []web.Cluster { return clusters }); err != nil {
		return err
	}
	var running, starting sync.WaitGroup
	var serving atomic.Int32
	errs := make([]error, len(servers))
	for i, s := range servers {
		starting.Add(1)
		started := sync.OnceFunc(starting.Done)
		running.Go(func() {
			defer started()
			errs[i] = runServer(ctx, log, s, &observed, func(addr string) {
				announce(ctx, log, s.cluster, addr, o.mdns)
				fmt.Fprintf(out, "mds ready on %s\n", addr)
				serving.Add(1)
				started()
			})
			if errs[i] != nil && (len(servers) > 1 || o.log.File != "") {
				log.Error("a metadata server has ended", "cluster", s.cluster, "err", errs[i])
			}
		})
	}
	go func() {
		starting.Wait()
		if serving.Load() == 0 {
			return // all have failed: this process ends
		}
		cli.Notify("READY=1")
		cli.Watchdog(ctx, log, observed.alive)
	}()
	running.Wait()
	cli.Notify("STOPPING=1")
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func runServer(ctx context.Context, log *slog.Logger, s server, observed *observers,
	ready func(addr string)) error {
	log = log.With("cluster", s.cluster)
	err := mds.Run(ctx, mds.Options{Dir: s.daemon.Dir, Cred: &s.cred, Addr: s.daemon.Addr,
		Log: log, Ready: ready, OnObserver: observed.add, Servers: s.conf.BSOrNone,
		OnServers: func(addrs []string) { cli.SaveBS(s.conf, addrs, log) }})
	if err == nil {
		return nil
	}
	e := &cli.Error{What: "serve " + s.daemon.Dir, Why: err}
	if cli.Refusal(err) {
		e.Status = cli.ExitRefuse
	}
	return e
}

// chooseServers returns the metadata servers that the options mean, at least one.
func chooseServers(etc string, o mdsdOptions) ([]server, error) {
	names := []string{o.cluster}
	if o.cluster == "" {
		var err error
		if names, err = cluster.List(etc); err != nil {
			return nil, cli.Fail("", err, "")
		}
	}
	dir := o.dir
	if dir != "" {
		var err error
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, cli.Fail("find "+o.dir, err, "")
		}
	}
	var servers []server
	for _, name := range names {
		conf, err := cluster.Choose(etc, name)
		if err != nil {
			return nil, cli.Fail("", err, "")
		}
		daemons, err := conf.Daemons(cluster.MDS)
		if err != nil {
			return nil, cli.Fail("", err, "")
		}
		for _, d := range daemons {
			if dir != "" && d.Dir != dir {
				continue
			}
			cred, err := conf.Credentials(dataplane.RoleMDS, 0)
			if err != nil {
				return nil, cli.Fail("", err, "")
			}
			servers = append(servers, server{name, d, cred, conf})
		}
	}
	switch {
	case len(servers) > 0:
		return servers, nil
	case dir != "":
		return nil, cli.Failf("serve "+dir, "no mds.list has it",
			"make a metadata server there with pstorage make-mds, or check -c and -r")
	}
	return nil, cli.Failf("serve metadata servers",
		"this node has none (looked under "+etc+")", "make one with pstorage make-mds")
}
