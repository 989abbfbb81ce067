package main

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

// certifier tells metadata servers that a process has exited. It keeps one connection per
// cluster, so that the report doesn't wait for a handshake.
type certifier struct {
	log  *slog.Logger
	ctx  context.Context // ends at close
	stop context.CancelFunc

	mu      sync.Mutex
	clients map[string]*control.Client
}

func newCertifier(log *slog.Logger) *certifier {
	c := &certifier{log: log, clients: make(map[string]*control.Client)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// certify reports that the process who, of p's cluster, has exited; planned: as it was asked to.
func (c *certifier) certify(ctx context.Context, p place, who incarnation, planned bool) {
	client, err := c.client(p.cluster)
	if err == nil {
		err = client.Call(ctx, control.OpExited, &control.ExitedReq{CS: who.CS, Boot: who.Boot,
			Planned: planned}, nil)
	}
	log := c.log.With("cluster", p.cluster, "cs", who.CS, "boot", who.Boot)
	if err != nil {
		log.Warn("couldn't report the exit to the metadata servers; its lease will run out", "err", err)
		return
	}
	log.Info("exit reported to the metadata servers")
}

// refuseEvery is how often a refusal is repeated: a new leader of the metadata servers begins
// without it.
const refuseEvery = 30 * time.Second

// refuse says again and again, until ctx ends, that the directory of p isn't served, and why.
func (c *certifier) refuse(ctx context.Context, p place, who incarnation) {
	host, _ := os.Hostname()
	req := &control.RefusedReq{CS: who.RefusedCS, Host: host, Path: p.daemon.Dir,
		Reason: who.Refusal}
	for ctx.Err() == nil {
		client, err := c.client(p.cluster)
		if err == nil {
			call, cancel := context.WithTimeout(ctx, refuseEvery)
			err = client.Call(call, control.OpRefused, req, nil)
			cancel()
		}
		if err != nil && ctx.Err() == nil {
			c.log.Warn("couldn't tell the metadata servers of a directory that is refused", "dir",
				p.daemon.Dir, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(refuseEvery):
		}
	}
}

func (c *certifier) client(name string) (*control.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if client := c.clients[name]; client != nil {
		return client, nil
	}
	conf, err := cluster.Choose(cluster.EtcDir(), name)
	if err != nil {
		return nil, err
	}
	cred, err := conf.Credentials(dataplane.RoleSupervisor, 0)
	if err != nil {
		return nil, err
	}
	client, err := control.Dial(context.Background(), control.Options{
		Addrs: cli.MDSAddrs(conf), Cred: &cred, Log: c.log})
	if err == nil {
		c.clients[name] = client
		go cli.KeepBS(c.ctx, conf, client, c.log.With("cluster", name))
	}
	return client, err
}

func (c *certifier) close() {
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, client := range c.clients {
		client.Close()
	}
}
