package main

import (
	"io"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
)

func newCompletion() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print what makes a shell complete the commands of this program",
		Long: `Print what makes a shell complete the commands of this program, their flags, and the
names of the clusters that this node belongs to. The packages install it for all users.`,
		Example: `  source <(pstorage completion bash)
  pstorage completion zsh > "${fpath[1]}/_pstorage"
  pstorage completion fish > ~/.config/fish/completions/pstorage.fish`,
		ValidArgs: []string{"bash", "zsh", "fish"},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usage("for which shell? one of bash, zsh, fish; see %s --help",
					cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			print, known := map[string]func(io.Writer) error{
				"bash": func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
				"zsh":  root.GenZshCompletion,
				"fish": func(w io.Writer) error { return root.GenFishCompletion(w, true) },
			}[args[0]]
			if !known {
				return cli.Usage("no completion for %q: bash, zsh and fish have one", args[0])
			}
			return cli.Fail("print", print(out), "")
		},
	}
}

// completeCluster completes -c.
func completeCluster(*cobra.Command, []string, string) ([]cobra.Completion,
	cobra.ShellCompDirective) {
	names, _ := cluster.List(cluster.EtcDir()) // of which there are none if it can't be read
	return names, cobra.ShellCompDirectiveNoFileComp
}
