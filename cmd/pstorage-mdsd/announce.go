package main

import (
	"context"
	"log/slog"
	"net/netip"

	"pstorage/dataplane/discover"
)

// announce has a metadata server found by multicast DNS, until ctx ends.
func announce(ctx context.Context, log *slog.Logger, name, addr, mode string) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil || mode == "off" || mode == "auto" && (ap.Addr().IsLoopback() || !ap.Addr().Is4()) {
		return
	}
	go func() {
		if err := discover.Announce(ctx, name, ap); err != nil {
			log.Warn("this metadata server can't be found by multicast DNS", "cluster", name,
				"addr", addr, "err", err)
		}
	}()
}
