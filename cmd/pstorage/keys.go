package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

func newRotateKeys(a *app) *cobra.Command {
	var force bool
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "rotate-keys",
		Short: "Give the cluster and all its nodes new keys, while everything goes on",
		Long: `Give the cluster and all its nodes new keys, while everything goes on: first everybody
accepts the new keys besides the old ones, then everybody uses them, then the old ones
are refused. Each step waits until all connected processes are ready for it. A node that
isn't connected meanwhile must be authenticated again (pstorage auth-node). When it is
interrupted, run it again: it goes on where it stopped.

A key that was stolen from a node is made useless with pstorage revoke-node. In a cluster
that was made by a version without certificates this command gives all nodes theirs.`,
		Example: `  pstorage rotate-keys
  pstorage rotate-keys --force      # leave behind who isn't ready`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return rotateKeys(cmd.Context(), a, force, patience, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().BoolVar(&force, "force", false,
		"after --timeout go on although some aren't ready: they must be authenticated again")
	cmd.Flags().DurationVar(&patience, "timeout", time.Minute, "how long to wait in each step")
	a.addOutput(cmd)
	return cmd
}

// keysPoll is how often it is asked who isn't ready.
const keysPoll = 200 * time.Millisecond

// rotateKeys takes the steps that are left of a rotation, or all of a new one.
func rotateKeys(ctx context.Context, a *app, force bool, patience time.Duration, out,
	progress io.Writer) error {
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	const what = "rotate the keys"
	var doc control.KeysDoc
	if err := conn.get(ctx, what, control.AdminListKeys, nil, &doc); err != nil {
		return err
	}
	for {
		args := control.RotateKeysArgs{Step: doc.Next}
		if args.Step != control.RotateStart {
			behind, err := conn.awaitKeys(ctx, what, patience)
			if err != nil {
				return err
			}
			if args.Force = len(behind) > 0; args.Force && !force {
				return cli.Fail(what, fmt.Errorf("stopped before the step %q: these aren't ready: %s",
					args.Step, strings.Join(behind, "; ")),
					"run it again when they are, or with --force to leave them behind")
			}
		}
		if err := conn.get(ctx, what, control.AdminRotateKeys, args, &doc); err != nil {
			return err
		}
		fmt.Fprintf(progress, "%s: done; generation %d is current\n", args.Step, doc.Generation)
		if args.Step == control.RotateFinish {
			break
		}
	}
	return a.print(out, doc, func(t *table) {
		t.line("The keys of generation %d are in force; older ones are refused.", doc.Generation)
	})
}

// awaitKeys waits until all processes are ready for the next step, and returns those that aren't
// when its patience ends.
func (c *adminConn) awaitKeys(ctx context.Context, what string, patience time.Duration) ([]string,
	error) {
	for end := time.Now().Add(patience); ; {
		var doc control.KeysDoc
		if err := c.get(ctx, what, control.AdminListKeys, nil, &doc); err != nil {
			return nil, err
		}
		if len(doc.Behind) == 0 || time.Now().After(end) {
			return doc.Behind, nil
		}
		select {
		case <-ctx.Done():
			return nil, cli.Fail(what, errors.New("interrupted"), "run it again to go on")
		case <-time.After(keysPoll):
		}
	}
}

func newListKeys(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list-keys",
		Short: "List the nodes that were given a key, and what their keys are good for",
		Example: `  pstorage list-keys
  pstorage list-keys -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, a, "list the keys", control.AdminListKeys, nil, nodeTable)
		},
	}
	a.addOutput(cmd)
	return cmd
}

func nodeTable(t *table, doc control.KeysDoc) {
	t.line("mode %s, keys of generation %d", doc.Mode, doc.Generation)
	if doc.Next != control.RotateStart {
		t.line("a rotation is under way; go on with: pstorage rotate-keys")
	}
	if len(doc.Nodes) == 0 {
		t.line("Nodes have no certificates in this cluster; pstorage rotate-keys gives them some.")
		return
	}
	t.row("ID", "HOST", "ROLES", "SINCE", "PROCESSES", "STATE")
	for _, n := range doc.Nodes {
		state := "valid"
		if n.Revoked {
			state = "revoked"
		}
		t.row(n.ID, clean(n.Host), strings.Join(n.Roles, ","),
			time.Unix(0, n.TimeNs).Format(time.DateOnly), fmt.Sprint(n.Connected), state)
	}
}

func newRevokeNode(a *app) *cobra.Command {
	var args control.RevokeNodeArgs
	cmd := &cobra.Command{
		Use:   "revoke-node NODE",
		Short: "Refuse a node's key from now on",
		Long: `Refuse a node's key from now on: of a client that shall have no access any more, or of
a host that was stolen. NODE is an ID in pstorage list-keys, or a host's name if only one
valid node has it. All servers are told at once, and close the node's connections. Chunk
servers on it are lost with it: remove them first (pstorage rm-cs). What the node learnt
of the cluster's keys becomes useless with pstorage rotate-keys.`,
		Example: `  pstorage list-keys
  pstorage revoke-node 01c3a5f09e2b7d44`,
		Args: func(cmd *cobra.Command, list []string) error {
			if len(list) != 1 {
				return cli.Usage("one node is needed, %d were given; see pstorage list-keys", len(list))
			}
			args.Node = list[0]
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, a, "revoke node "+args.Node, control.AdminRevokeNode, args,
				func(t *table, _ control.KeysDoc) {
					t.line("The key of node %s is refused from now on.", args.Node)
				})
		},
	}
	a.addOutput(cmd)
	return cmd
}
