package cli

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"time"
)

// watchdogInterval returns within which time the service manager wants to hear of this process;
// 0: it doesn't want to.
func watchdogInterval() time.Duration {
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || us <= 0 || us > int64(24*time.Hour/time.Microsecond) {
		return 0
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// Watchdog tells the service manager until ctx ends that this process is alive, if it wants to
// know (WatchdogSec= of systemd.service(5)): only if alive returns nil, and in time. alive asks
// the daemon's own loop. After ctx has ended the process must stop within the interval.
func Watchdog(ctx context.Context, log *slog.Logger, alive func(ctx context.Context) error) {
	interval := watchdogInterval()
	if interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 4)
	defer tick.Stop()
	for {
		askCtx, cancel := context.WithTimeout(ctx, interval/4)
		err := alive(askCtx)
		cancel()
		switch {
		case ctx.Err() != nil: // asked to stop: the last sign of life
			Notify("WATCHDOG=1")
			return
		case err != nil:
			log.Error("no sign of life for the service manager", "reason", err, "limit", interval)
			Notify("STATUS=not alive: " + OneLine(err))
		default:
			Notify("WATCHDOG=1")
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
