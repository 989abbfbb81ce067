package cli

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

// bsEvery is how often a daemon asks where the metadata servers are.
const bsEvery = 30 * time.Second

// KeepBS keeps bs.list as the metadata servers say it should be, until ctx ends, so that a node
// still finds the cluster when all servers it was told of at first have been replaced.
func KeepBS(ctx context.Context, conf *cluster.Conf, ctl *control.Client, log *slog.Logger) {
	tick := time.NewTicker(bsEvery)
	defer tick.Stop()
	for {
		var reply control.MDSListReply
		within, cancel := context.WithTimeout(ctx, bsEvery/2)
		err := ctl.Call(within, control.OpMDSList, &control.Empty{}, &reply)
		cancel()
		if err == nil {
			SaveBS(conf, reply.Addrs, log)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// SaveBS makes addrs the contents of bs.list unless they are that already.
func SaveBS(conf *cluster.Conf, addrs []string, log *slog.Logger) {
	if len(addrs) == 0 {
		return
	}
	have := slices.Clone(conf.BSOrNone())
	want := slices.Clone(addrs)
	slices.Sort(have)
	slices.Sort(want)
	if slices.Equal(have, want) {
		return
	}
	if err := conf.SaveBS(addrs); err != nil {
		log.Warn("the metadata servers have changed, and bs.list can't be written", "err", err)
		return
	}
	log.Info("the metadata servers have changed", "now", addrs, "before", have)
}
