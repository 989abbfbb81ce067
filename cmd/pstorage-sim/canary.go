package main

import (
	"pstorage/chunk"
	"pstorage/mds"
)

// canary is a deliberate fault of the protocol.
type canary struct {
	cs  chunk.Canary
	mds mds.SimCanary
}

// canaries are the faults that the simulator must find.
var canaries = map[string]canary{
	"ack-early":         {cs: chunk.Canary{AckEarly: true}},
	"ack-volatile":      {cs: chunk.Canary{AckVolatile: true}},
	"no-lease":          {cs: chunk.Canary{NoLease: true}},
	"no-patches":        {cs: chunk.Canary{NoPatches: true}},
	"forget-sealed":     {cs: chunk.Canary{ForgetSealed: true}},
	"volatile-activate": {cs: chunk.Canary{VolatileActivate: true}},
	"deaf-head":         {cs: chunk.Canary{DeafHead: true}},
	"no-fence":          {mds: mds.SimCanary{NoFence: true}},
	"read-above":        {cs: chunk.Canary{ReadAbove: true}},
	"no-crc":            {cs: chunk.Canary{NoCRC: true}},
	"no-dirty":          {cs: chunk.Canary{NoDirty: true}},
	"no-history":        {cs: chunk.Canary{NoHistory: true}},
	"trust-partial":     {cs: chunk.Canary{TrustPartial: true}},
	"no-lease-wait":     {mds: mds.SimCanary{NoLeaseWait: true}},
	"ack-chain":         {cs: chunk.Canary{AckChain: true}},
	"old-epoch":         {cs: chunk.Canary{OldEpoch: true}},
	"seal-early":        {cs: chunk.Canary{SealEarly: true}},
	"serve-unsettled":   {cs: chunk.Canary{ServeUnsettled: true}},
	"keep-links":        {cs: chunk.Canary{KeepLinks: true}},
	"no-exclude":        {cs: chunk.Canary{NoExclude: true}},
	"first-wins":        {cs: chunk.Canary{FirstWins: true}},
	"keep-losers":       {cs: chunk.Canary{KeepLosers: true}},
	"no-term-wait":      {mds: mds.SimCanary{NoTermWait: true}},
}
