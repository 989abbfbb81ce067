package main

import (
	"fmt"
	"time"

	"pstorage/chunk"
	"pstorage/mds"
)

// canary is a deliberate fault of the protocol.
type canary struct {
	cs  chunk.Canary
	mds mds.SimCanary
	// seeds, from the first on, are how many must be enough to find it: several times what it takes.
	// What a seed does changes with the program, so a canary may be missed by bad luck. 0: usualSeeds.
	seeds int
}

const usualSeeds = 2000

// enough is how many seeds must be enough to find it.
func (c *canary) enough() int {
	if c.seeds > 0 {
		return c.seeds
	}
	return usualSeeds
}

// canaries are the faults that the simulator must find. Some checks of the protocol have none:
//   - a seal outlives its process: a process that starts serves nothing before it was settled
//     (serve-unsettled);
//   - the longest history wins: what was acknowledged is in all of them, so any would do;
//   - a copy that was begun isn't believed (trust-partial): it can only become a member while it is
//     complete, since the head has on record that it asked. The canary leaves that out, too;
//   - the epoch of what a client says was acknowledged: seqs only grow from epoch to epoch, so an
//     old one is below the commit mark of the new.
var canaries = map[string]canary{
	"ack-early":         {cs: chunk.Canary{AckEarly: true}},
	"ack-volatile":      {cs: chunk.Canary{AckVolatile: true}},
	"no-lease":          {cs: chunk.Canary{NoLease: true}, seeds: 8000},
	"no-patches":        {cs: chunk.Canary{NoPatches: true}},
	"forget-sealed":     {cs: chunk.Canary{ForgetSealed: true}},
	"volatile-activate": {cs: chunk.Canary{VolatileActivate: true}},
	"deaf-head":         {cs: chunk.Canary{DeafHead: true}},
	"no-fence":          {mds: mds.SimCanary{NoFence: true}},
	"read-above":        {cs: chunk.Canary{ReadAbove: true}},
	"claim-all":         {cs: chunk.Canary{ClaimAll: true}},
	"no-crc":            {cs: chunk.Canary{NoCRC: true}},
	"no-dirty":          {cs: chunk.Canary{NoDirty: true}},
	"forget-asked":      {cs: chunk.Canary{ForgetAsked: true}},
	"no-hold":           {cs: chunk.Canary{NoHold: true}},
	"no-hold-added":     {cs: chunk.Canary{NoHoldAdded: true}},
	"no-history":        {cs: chunk.Canary{NoHistory: true}},
	"trust-partial":     {cs: chunk.Canary{TrustPartial: true}},
	"no-lease-wait":     {mds: mds.SimCanary{NoLeaseWait: true}},
	"ack-chain":         {cs: chunk.Canary{AckChain: true}},
	"seal-early":        {cs: chunk.Canary{SealEarly: true}},
	"serve-unsettled":   {cs: chunk.Canary{ServeUnsettled: true}},
	"keep-links":        {cs: chunk.Canary{KeepLinks: true}},
	"no-file-fence":     {cs: chunk.Canary{NoFileFence: true}},
	"no-fence-wait":     {mds: mds.SimCanary{NoFenceWait: true}},
	"old-epoch":         {cs: chunk.Canary{OldEpoch: true}},
	"no-exclude":        {cs: chunk.Canary{NoExclude: true}},
	"record-first":      {cs: chunk.Canary{RecordFirst: true}},
	"no-salvage":        {cs: chunk.Canary{NoSalvage: true}},
	"salvage-any":       {cs: chunk.Canary{SalvageAny: true}},
	"flush-early":       {cs: chunk.Canary{FlushEarly: true}},
	"keep-life":         {cs: chunk.Canary{KeepLife: true}},
	"no-term-wait":      {mds: mds.SimCanary{NoTermWait: true}},
	"trust-images":      {mds: mds.SimCanary{TrustImages: true}},
	"no-forfeit":        {mds: mds.SimCanary{NoForfeit: true}},
}

// allCanaries runs every canary until it is found, for o.seeds seeds (0: what must be enough for
// it) or o.limit at most, and prints how many that took. It returns how many weren't found.
func (o *options) allCanaries() (missed int) {
	for _, name := range canaryNames() {
		start := time.Now()
		ran, found := o.findCanary(name)
		text := "found"
		if !found {
			text = "NOT FOUND"
			missed++
		}
		fmt.Printf("%-18s %-9s in %4d seeds, %v\n", name, text, ran,
			time.Since(start).Round(time.Millisecond))
	}
	return missed
}

// findCanary runs one until it is found.
func (o *options) findCanary(name string) (ran int, found bool) {
	one := *o
	one.canary, one.twice, one.keep, one.quiet = name, 0, 1, true
	if c := canaries[name]; one.seeds == 0 {
		one.seeds = c.enough()
	}
	ran, bad := one.seedsRun()
	return ran, bad > 0
}
