package main

import (
	"context"
	"log/slog"

	"pstorage/cmd/cli"
	"pstorage/cmd/web"
	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// webClusters returns what the web page shows: one poller for each cluster that has a server here,
// if the page is wanted at all. Each asks the cluster's leader, wherever that is.
func webClusters(ctx context.Context, o mdsdOptions, servers []server) (
	list []web.Cluster, closeAll func(), err error) {
	var clients []*control.Client
	closeAll = func() {
		for _, c := range clients {
			c.Close()
		}
	}
	seen := map[string]bool{}
	for _, s := range servers {
		if o.web.Addr == "" || seen[s.cluster] {
			continue
		}
		seen[s.cluster] = true
		var client *control.Client
		cred, err := s.conf.Credentials(dataplane.RoleAdmin, 0)
		if err == nil {
			client, err = control.Dial(ctx, control.Options{Addrs: cli.MDSAddrs(s.conf), Cred: &cred,
				Log: slog.New(slog.DiscardHandler)})
		}
		if err != nil {
			closeAll()
			return nil, nil, cli.Fail("ask cluster "+s.cluster+" for the web page", err, "")
		}
		clients = append(clients, client)
		p := web.NewPoller(client.Admin)
		go p.Run(ctx)
		list = append(list, web.Cluster{Name: s.cluster, Poller: p})
	}
	return list, closeAll, nil
}
