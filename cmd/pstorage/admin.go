package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

const (
	adminTimeout = 5 * time.Second  // for an answer, leader elections included
	longTimeout  = 10 * time.Minute // for one to a command about any number of files
)

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
	if _, err := conf.LoadBS(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Fail("", err, "")
	}
	client, err := control.Dial(ctx, control.Options{Addrs: cli.MDSAddrs(conf), Cred: &cred,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, cli.Fail("reach cluster "+conf.Name(), err, "")
	}
	return &adminConn{conf, client}, nil
}

func (c *adminConn) close() { c.client.Close() }

// get asks for a document and decodes it into doc. what is for the error.
func (c *adminConn) get(ctx context.Context, what, command string, args, doc any) error {
	return c.getWithin(ctx, adminTimeout, what, command, args, doc)
}

// getLong is get for commands whose work has no bound, because it is about all files below a
// directory. It asks for something short first: that nobody is there is to be known at once. The
// metadata server carries such work through, whether somebody waits for it or not.
func (c *adminConn) getLong(ctx context.Context, line *waitLine, what, command string,
	args, doc any) error {
	if err := c.get(ctx, what, control.AdminGetConfig, nil, nil); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- c.getWithin(ctx, longTimeout, what, command, args, doc) }()
	defer line.end()
	began := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			line.show(now, fmt.Sprintf("%s: the metadata server has been at it for %v", what,
				now.Sub(began).Round(time.Second)))
		case err := <-done:
			const goesOn = "the metadata server goes on with it all the same"
			switch {
			case err != nil && ctx.Err() != nil:
				return cli.Failf(what, "interrupted", goesOn)
			case dataplane.KindOf(err) == dataplane.TimedOut:
				return cli.Failf(what, fmt.Sprintf("it isn't done after %v", longTimeout), goesOn)
			}
			return err
		}
	}
}

func (c *adminConn) getWithin(ctx context.Context, limit time.Duration, what, command string,
	args, doc any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := c.client.Admin(ctx, command, args, doc)
	var unread *control.AnswerError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unread):
		return cli.Fail(what, err, "is it of another version than this program?")
	}
	return c.explain(what, err)
}

// ask asks the chosen cluster for one document. what is for the error.
func ask[Doc any](cmd *cobra.Command, a *app, what, command string, args any) (doc Doc, err error) {
	conn, err := a.admin(cmd.Context())
	if err != nil {
		return doc, err
	}
	defer conn.close()
	err = conn.get(cmd.Context(), what, command, args, &doc)
	return doc, err
}

// show does what most commands do: it asks for a document and prints it as JSON, or as the function
// fill puts it.
func show[Doc any](cmd *cobra.Command, a *app, what, command string, args any,
	fill func(*table, Doc)) error {
	doc, err := ask[Doc](cmd, a, what, command, args)
	if err != nil {
		return err
	}
	return a.print(cmd.OutOrStdout(), doc, func(t *table) { fill(t, doc) })
}

// explain makes an error for people out of what a call returned: the reason may lie several
// layers down, in what became of the attempts to connect.
func (c *adminConn) explain(what string, err error) error {
	var refused *dataplane.Error // by a server that we did reach
	var errno syscall.Errno      // of a server that we didn't
	walk(err, func(e error) {
		if ours, ok := e.(*dataplane.Error); ok && refused == nil &&
			(ours.Kind == dataplane.Denied || ours.Kind == dataplane.WrongCluster) {
			refused = ours
		}
		if number, ok := e.(syscall.Errno); ok && errno == 0 {
			errno = number
		}
	})
	switch dataplane.KindOf(err) {
	case dataplane.Unreachable, dataplane.TimedOut, dataplane.Closed:
	default:
		return cli.Fail(what, err, advice(err))
	}
	switch {
	case refused != nil:
		return cli.Fail(what, refused, advice(refused))
	case errno != 0:
		err = fmt.Errorf("no metadata server answers at %s: %w",
			strings.Join(c.conf.BSOrNone(), ", "), errno)
	}
	return cli.Fail(what, err, "check that pstorage-mdsd runs and that "+c.conf.BSPath()+
		" has its address")
}

// walk calls f for err and everything it wraps, the outermost first.
func walk(err error, f func(error)) {
	if err == nil {
		return
	}
	f(err)
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		walk(e.Unwrap(), f)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			walk(inner, f)
		}
	}
}
