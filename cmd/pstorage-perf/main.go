// Pstorage-perf measures a pstorage cluster, each figure beside a yardstick from the same minutes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the process at once
	root := &cobra.Command{
		Use:           "pstorage-perf",
		Short:         "Measure a pstorage cluster",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(newFlip())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "pstorage-perf: "+strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(1)
	}
}
