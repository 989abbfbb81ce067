package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

func newListClients(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list-clients",
		Short: "List who uses the cluster: mounts, block devices, programs",
		Long: `List who uses the cluster: mounts, block devices, programs with the library. WRITES is how
many files a client has the right to write (pstorage file-info says who has it, for one
file), IDLE for how long it has asked the metadata server nothing: reads and writes of
known chunks need it not. A client that isn't connected any more is listed as long as it
has files to write. The ID is what pstorage revoke --client takes.`,
		Example: `  pstorage list-clients
  pstorage list-clients -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, a, "list the clients", control.AdminListClients, nil, showClients)
		},
	}
	a.addOutput(cmd)
	return cmd
}

// clients asks for the clients.
func (c *adminConn) clients(ctx context.Context) (doc control.ClientsDoc, err error) {
	err = c.get(ctx, "list the clients", control.AdminListClients, nil, &doc)
	return doc, err
}

func showClients(t *table, doc control.ClientsDoc) {
	t.row("CLIENT", "HOST", "WRITES", "IDLE", "SINCE", "ADDRESS", "MOUNTS")
	for i := range doc.Clients {
		c := &doc.Clients[i]
		t.row(c.ID, clean(c.Host), c.Writes, span(c.IdleMs), since(c), cmp.Or(c.Addr, "gone"),
			clean(strings.Join(c.Mounts, " ")))
	}
	if doc.More > 0 {
		t.line("and %d more", doc.More)
	}
}

// since is how old a client's connection is.
func since(c *control.ClientDoc) string {
	if !c.Connected {
		return "-"
	}
	return span(c.AgeMs)
}

// span is a time, given in milliseconds, in at most 5 characters.
func span(ms int64) string {
	switch d := time.Duration(ms) * time.Millisecond; {
	case d < time.Second:
		return "now"
	case d < 10*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 10*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 10*24*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}
