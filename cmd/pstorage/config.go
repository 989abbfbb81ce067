package main

import (
	"strings"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

const configHelp = `  capacity.limit            of user data, such as 10T; above it writers that
                            need new chunks wait, without an error
  mode                      of the data's connections: crc (default; checksums alone) or
                            secure (encrypted, too)
  rebalance                 on (default) or off: chunks move to emptier chunk servers
  recovery.offline-timeout  how long a silent chunk server is waited for before its
                            chunks are copied to others (300s)
  recovery.per-server       chunks copied at a time from, and to, one server (4)
  recovery.total            chunks copied at a time in all (64)
  user.*                    anything`

func newGetConfig(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get-config",
		Short:   "Show the cluster's configuration",
		Long:    "Show the cluster's configuration: what was set. The keys are:\n\n" + configHelp,
		Example: `  pstorage get-config -o json`,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, a, "show the configuration", control.AdminGetConfig, nil, showConfig)
		},
	}
	a.addOutput(cmd)
	return cmd
}

func newSetConfig(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set-config KEY=VALUE",
		Short: "Change the cluster's configuration",
		Long: `Change the cluster's configuration. It holds at once. KEY= takes an entry away, so that
its default holds. The keys are:

` + configHelp,
		Example: `  pstorage set-config rebalance=off
  pstorage set-config capacity.limit=20T
  pstorage set-config capacity.limit=`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || strings.IndexByte(args[0], '=') <= 0 {
				return cli.Usage("give one KEY=VALUE; the keys are in pstorage set-config --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			key, value, _ := strings.Cut(args[0], "=")
			return show(cmd, a, "set "+key, control.AdminSetConfig,
				control.SetConfigArgs{Key: key, Value: value, Any: true}, showConfig)
		},
	}
	a.addOutput(cmd)
	return cmd
}

func showConfig(t *table, doc control.ConfigDoc) {
	if len(doc.Entries) == 0 {
		t.line("Nothing is set: all defaults hold.")
		return
	}
	t.row("KEY", "VALUE")
	for _, e := range doc.Entries {
		t.row(e.Key, e.Value)
	}
}
