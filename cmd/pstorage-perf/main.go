// Pstorage-perf measures a pstorage cluster, each figure beside a yardstick from the same minutes.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
)

func main() {
	cli.SpareProcs()
	os.Exit(cli.Run(cli.Context(), newRoot(), os.Args[1:], os.Stderr))
}

func newRoot() *cobra.Command {
	root := &cobra.Command{Use: "pstorage-perf", Short: "Measure a pstorage cluster"}
	root.AddCommand(newQuick(), newBench(), newCompare(), newPassthrough(), newNative(), newFlip(),
		newEngine(), newRelay(), newRecovery(), newPeers(), newMDS(), newMDSChild())
	return root
}
