package perf

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

// Admin asks a cluster's metadata servers for documents, as the command line does.
type Admin struct{ client *control.Client }

// OpenAdmin connects to a cluster. etc is the directory of the configuration.
func OpenAdmin(ctx context.Context, etc, name string) (*Admin, error) {
	conf, err := cluster.Choose(etc, name)
	if err != nil {
		return nil, err
	}
	cred, err := conf.Credentials(dataplane.RoleAdmin, 0)
	if err != nil {
		return nil, err
	}
	c, err := control.Dial(ctx, control.Options{Addrs: conf.BSOrNone, Cred: &cred,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	return &Admin{c}, nil
}

// Get does an administrative command and decodes its answer into doc, unless that is nil.
func (a *Admin) Get(ctx context.Context, command string, args, doc any) error {
	encoded, err := json.Marshal(args)
	if err != nil {
		return err
	}
	var reply control.AdminReply
	err = a.client.Call(ctx, control.OpAdmin, &control.AdminReq{Command: command, Args: encoded},
		&reply)
	if err != nil || doc == nil {
		return err
	}
	if err := json.Unmarshal(reply.Doc, doc); err != nil {
		return fmt.Errorf("answer to %s: %w", command, err)
	}
	return nil
}

// Stat asks for the state of the cluster.
func (a *Admin) Stat(ctx context.Context) (*control.StatDoc, error) {
	doc := new(control.StatDoc)
	return doc, a.Get(ctx, control.AdminStat, struct{}{}, doc)
}

// Close ends the connection.
func (a *Admin) Close() { a.client.Close() }
