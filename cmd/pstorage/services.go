package main

import (
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

func newListServices(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list-services",
		Short:   "List the cluster's daemons: where they run and whether they are alive",
		Example: `  pstorage list-services -o json`,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, a, "list the services", control.AdminListServices, nil, showServices)
		},
	}
	a.addOutput(cmd)
	return cmd
}

func showServices(t *table, doc control.ServicesDoc) {
	t.row("SERVICE", "ID", "ADDRESS", "STATUS", "SEEN", "HOST", "DIRECTORY", "REASON")
	for _, m := range doc.MDS {
		status := "member"
		switch {
		case m.Leader:
			status = "leader"
		case m.Down:
			status = "down"
		case !m.Voter:
			status = "joining"
		}
		t.row("mds", m.ID, m.Addr, status, "", "", "", "")
	}
	for _, c := range doc.CS {
		t.row("cs", c.ID, c.Addr, csState(c), ago(c.SilentMs), c.Host, c.Path, c.Reason)
	}
	for _, r := range doc.Refused {
		t.row("cs", "?", "", control.CSRefused, "", r.Host, r.Path, r.Reason)
	}
}

// ago is how long ago something was, in milliseconds, for people.
func ago(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return d.Truncate(time.Second).String() + " ago"
	}
	return d.Truncate(time.Minute).String() + " ago"
}
