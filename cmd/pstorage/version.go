package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
)

type versionDoc struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Protocol int    `json:"protocol"`
	Go       string `json:"go"`
}

func newVersion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  pstorage version -o json",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc := currentVersion()
			return a.print(cmd.OutOrStdout(), doc, func(t *table) {
				t.line("pstorage %s (revision %s), protocol %d, %s",
					doc.Version, doc.Revision, doc.Protocol, doc.Go)
			})
		},
	}
	a.addOutput(cmd)
	return cmd
}

func currentVersion() versionDoc {
	doc := versionDoc{Version: "unknown", Revision: "unknown",
		Protocol: dataplane.ProtocolVersion, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return doc
	}
	if info.Main.Version != "" {
		doc.Version = info.Main.Version
	}
	dirty := ""
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			doc.Revision = fmt.Sprintf("%.12s", setting.Value)
		case "vcs.modified":
			if setting.Value == "true" {
				dirty = "+"
			}
		}
	}
	doc.Revision += dirty
	return doc
}
