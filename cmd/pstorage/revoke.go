package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

func newRevoke(a *app) *cobra.Command {
	var args control.RevokeArgs
	var client string
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "revoke [PATH]",
		Short: "Take the right to write a file away from the client that has it",
		Long: `Take the right to write a file away from the client that has it, so that another can
write it at once. That is for a host that is lost or hangs: one client at a time may write a
file, and a client that says nothing loses that right only after 30 s.

The command ends when no write of that client can reach the file any more, not even one that
is on its way. The client gets the error EROFS for writes; it may read on, and when the file
is opened there anew (NBD: when its client connects anew) it may ask for the right again. Who
may write a file: pstorage file-info`,
		Example: `  pstorage revoke /vm/disk1                       # whoever writes it
  pstorage revoke -R /vm --client 4be1907ff6a2b0c1 # only what that client writes
  pstorage revoke --client 4be1907ff6a2b0c1 --all  # everything that it writes`,
		Args: func(cmd *cobra.Command, paths []string) error {
			switch {
			case args.All && len(paths) > 0:
				return cli.Usage("--all means all files: no PATH then")
			case args.All && client == "":
				return cli.Usage("--all needs --client")
			case args.All:
				return nil
			}
			if len(paths) != 1 {
				return cli.Usage("one PATH is needed; see %s --help", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, paths []string) error {
			if client != "" {
				var err error
				args.Client, err = strconv.ParseUint(client, 16, 64)
				if err != nil || args.Client == 0 {
					return cli.Usage("--client %q: 1 to 16 hexadecimal digits, as in "+
						"pstorage file-info", client)
				}
			}
			if len(paths) == 1 {
				args.Path = paths[0]
			}
			args.By = whoami()
			return revoke(cmd.Context(), a, args, patience, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().BoolVarP(&args.Recursive, "recursive", "R", false, "all files below the directory")
	cmd.Flags().StringVar(&client, "client", "", "only if client `ID` has the right")
	cmd.Flags().BoolVar(&args.All, "all", false, "all files of the client")
	cmd.Flags().DurationVar(&patience, "timeout", 30*time.Second,
		"how long to wait until it is in force")
	a.addOutput(cmd)
	return cmd
}

// whoami is who runs this command, for the event log.
func whoami() string {
	name := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}

// revokePoll is how often it is asked whether a revocation is in force.
const revokePoll = 50 * time.Millisecond

// revokeAgain is what to do when it isn't known whether a revocation is in force.
const revokeAgain = "run it again: it waits until what was taken away before is in force, too"

func revoke(ctx context.Context, a *app, args control.RevokeArgs, patience time.Duration,
	out, messages io.Writer) error {
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	const what = "revoke the right to write"
	line := newWaitLine(messages, a.output == "json")
	var all control.RevokeDoc
	for {
		var doc control.RevokeDoc
		if args.Recursive || args.All {
			err = conn.getLong(ctx, &line, what, control.AdminRevoke, args, &doc)
		} else {
			err = conn.get(ctx, what, control.AdminRevoke, args, &doc)
		}
		if err != nil && len(all.Revoked) > 0 {
			return cli.Failf(what, fmt.Sprintf("of %d files only, then: %s", len(all.Revoked),
				cli.OneLine(err)), revokeAgain)
		}
		if err != nil {
			return insideAdvice(err, args.Path)
		}
		all.Revoked = append(all.Revoked, doc.Revoked...)
		all.Free += doc.Free
		if doc.Seq >= all.Seq { // who has that has all before
			all.Seq, all.Waiting = doc.Seq, doc.Waiting
		}
		if args.After = doc.Next; doc.Next == 0 {
			break
		}
	}
	for end := time.Now().Add(patience); len(all.Waiting) > 0; {
		if time.Now().After(end) {
			return cli.Fail(what,
				fmt.Errorf("not in force yet: %s didn't confirm it", waitingFor(&all)),
				"it comes into force when they do, or 2 s after they are lost")
		}
		select {
		case <-ctx.Done():
			return cli.Failf(what, "interrupted while it isn't in force yet", revokeAgain)
		case <-time.After(revokePoll):
		}
		var doc control.RevokeDoc
		wait := control.RevokeWaitArgs{Seq: all.Seq}
		err := conn.get(ctx, what, control.AdminRevokeWait, wait, &doc)
		switch {
		case err == nil:
			all.Waiting = doc.Waiting
		case ctx.Err() == nil && time.Now().After(end):
			return cli.Failf(what, "it was taken away, but nobody says whether that is in force: "+
				cli.OneLine(err), revokeAgain)
		}
	}
	if all.Revoked == nil {
		all.Revoked = []control.LeaseDoc{}
	}
	return a.print(out, all, func(t *table) {
		for _, l := range all.Revoked {
			t.line("%s: client %x on %s (%s) may not write it any more.", clean(l.Path), l.Client,
				clean(l.Host), clean(l.Mount))
		}
		if len(all.Revoked) == 0 {
			t.line("Nothing to revoke: nobody has the right to write there, or not the client named.")
		}
	})
}

func waitingFor(doc *control.RevokeDoc) string {
	names := make([]string, len(doc.Waiting))
	for i, id := range doc.Waiting {
		names[i] = fmt.Sprintf("cs %d", id)
	}
	return strings.Join(names, ", ")
}
