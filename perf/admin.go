package perf

import (
	"context"
	"log/slog"

	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

// dialAdmin connects to a cluster's metadata servers, for administrative commands. etc is the
// directory of the configuration.
func dialAdmin(ctx context.Context, etc, name string) (*control.Client, error) {
	conf, err := cluster.Choose(etc, name)
	if err != nil {
		return nil, err
	}
	cred, err := conf.Credentials(dataplane.RoleAdmin, 0)
	if err != nil {
		return nil, err
	}
	return control.Dial(ctx, control.Options{Addrs: conf.BSOrNone, Cred: &cred,
		Log: slog.New(slog.DiscardHandler)})
}
