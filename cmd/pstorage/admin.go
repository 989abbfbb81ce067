package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

const adminTimeout = 10 * time.Second // for an answer, leader elections included

// adminConn asks the metadata servers for documents.
type adminConn struct {
	conf   *cluster.Conf
	client *control.Client
}

// admin connects to the chosen cluster's metadata servers.
func (a *app) admin(ctx context.Context) (*adminConn, error) {
	conf, err := a.conf()
	if err != nil {
		return nil, err
	}
	cred, err := conf.Credentials(dataplane.RoleAdmin, 0)
	if err != nil {
		return nil, cli.Fail("", err, "")
	}
	if _, err := conf.LoadBS(); err != nil {
		return nil, cli.Fail("", err, "")
	}
	client, err := control.Dial(ctx, control.Options{Addrs: conf.BSOrNone, Cred: &cred,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, cli.Fail("reach cluster "+conf.Name(), err, "")
	}
	return &adminConn{conf, client}, nil
}

func (c *adminConn) close() { c.client.Close() }

// get asks for a document and decodes it into doc. what is for the error.
func (c *adminConn) get(ctx context.Context, what, command string, args, doc any) error {
	encoded, err := json.Marshal(args)
	if err != nil {
		return cli.Fail(what, err, "")
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	var reply control.AdminReply
	err = c.client.Call(ctx, control.OpAdmin, &control.AdminReq{Command: command, Args: encoded},
		&reply)
	if err != nil {
		return c.explain(what, err)
	}
	if doc == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Doc, doc); err != nil {
		return cli.Fail(what, errors.New("the metadata server's answer can't be read: "+err.Error()),
			"is it of another version than this program?")
	}
	return nil
}

// explain makes an error for people out of one that may be wrapped several times.
func (c *adminConn) explain(what string, err error) error {
	todo := ""
	for e := err; e != nil && todo == ""; e = errors.Unwrap(e) {
		var ours *dataplane.Error
		if errors.As(e, &ours) {
			todo = advice(ours)
		}
	}
	switch dataplane.KindOf(err) {
	case dataplane.Unreachable, dataplane.TimedOut:
		if todo == "" {
			todo = "check that pstorage-mdsd runs"
		}
		what += " of cluster " + c.conf.Name()
	}
	return cli.Fail(what, err, todo)
}
