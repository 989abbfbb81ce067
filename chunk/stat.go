package chunk

import (
	"encoding/json"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// statDoc is what OpStat answers.
type statDoc struct {
	CS       dataplane.CSID
	Capacity uint64 // bytes
	Used     uint64
	control.CSStats
	Active, Unsettled, Settling int // chunks
	InFlight                    int // requests
	Links                       int
	PoolInUse                   int // bytes
	LogPressure                 float64
	LeaseLeftNs                 int64
	Failed                      string
	Relayed                     uint64 // parts, passed on while they arrived
}

// stat answers OpStat: a JSON document of counters.
func (l *link) stat(h *dataplane.Header) {
	sh := l.sh
	d := statDoc{CS: sh.id, CSStats: sh.Stats(), Links: sh.linkCount, PoolInUse: sh.pool.InUse(),
		LogPressure: sh.log.Pressure(), LeaseLeftNs: sh.lease.Load() - sh.env.Now(), Relayed: sh.relayed}
	d.Capacity, d.Used = sh.Capacity()
	if sh.dead != nil {
		d.Failed = sh.dead.Error()
	}
	for _, r := range sh.store.owners {
		switch {
		case r == nil:
		case r.settler != nil:
			d.Settling++
		case r.state == active:
			d.Active++
		default:
			d.Unsettled++
		}
	}
	for _, q := range sh.reqs {
		if q.r != nil {
			d.InFlight++
		}
	}
	payload, err := json.Marshal(&d)
	if err != nil || len(payload) > dataplane.PartSize {
		l.reply(h, dataplane.Internal)
		return
	}
	a := h.Reply(dataplane.OK)
	a.Flags |= dataplane.FlagData
	a.Offset, a.Length = 0, uint32(len(payload))
	l.c.Send(&a, crcsOf(payload), payload)
}
