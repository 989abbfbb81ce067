package mds

import (
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestExclusionsDontStarve: chunks that nothing can be done about, however many, don't keep the
// others from getting rid of a member that is gone for good, and so from being copied.
func TestExclusionsDontStarve(t *testing.T) {
	now := int64(1e12)
	var settles []control.SettlePush
	s := NewSim(SimOptions{Now: func() int64 { return now }, Wall: func() int64 { return 1e18 + now },
		Commit: func(done func()) { done() }, Applied: func() {},
		Push: func(to uint64, op dataplane.Opcode, payload []byte) {
			var p control.SettlePush
			if op == control.OpSettle && control.Unmarshal(payload, &p) == nil {
				settles = append(settles, p)
			}
		},
		Rand: rand.New(rand.NewPCG(1, 2)), Log: slog.New(slog.DiscardHandler)})
	defer s.Close()
	s.Lead()
	ask := func(peer uint64, op dataplane.Opcode, req any) (answer []byte) {
		t.Helper()
		s.Handle(dataplane.RoleCS, peer, 1, op, req, func(b []byte, err error) {
			if err != nil {
				t.Fatal(err)
			}
			answer = b
		})
		return answer
	}
	register := func(n, boot uint64, held ...control.HeldChunk) {
		t.Helper()
		ask(n, control.OpRegisterCS, &control.RegisterCSReq{Disk: [16]byte{byte(n)}, Boot: boot,
			Instance: 10*n + boot, Addr: "10.0.0.1:1", Host: "h", Path: "/p", Capacity: 1 << 50,
			Chunks: held})
	}
	for n := range uint64(3) {
		register(n+1, 1)
	}
	st := s.srv.r.fsm.s
	file := func(name string, chunks uint32, members ...dataplane.CSID) {
		t.Helper()
		id := do(t, st, 1, &cmdCreate{CreateReq: control.CreateReq{Parent: dataplane.RootID,
			Name: name, Type: control.TypeFile}}).Attr.File
		n := uint8(len(members))
		do(t, st, 1, &cmdSetAttr{SetAttrReq: control.SetAttrReq{File: id, Mask: control.SetPolicy,
			Policy: control.Policy{Replicas: n, Minimum: 1}}})
		for i := range chunks {
			p := placed{index: i, n: n}
			copy(p.members[:], members)
			do(t, st, 1, &cmdAllocate{File: id, Chunks: []placed{p}})
			do(t, st, 1, &cmdReconfigure{Chunk: st.table.At(st.table.Slots() - 1).ID, Epoch: 1,
				SetCreated: true})
		}
	}
	file("lost", 2*maxExclusions, 1) // all of them are gone from server 1
	file("halved", 1, 2, 3)          // server 3 doesn't come back
	now += int64(defaultOffline) + int64(time.Minute)
	register(1, 2)
	register(2, 2, control.HeldChunk{Chunk: st.table.At(st.table.Slots() - 1).ID, Epoch: 1})
	for range 2000 {
		now += int64(leaderTick)
		if now%int64(dataplane.HeartbeatEvery) == 0 {
			for n := range uint64(2) {
				ask(n+1, control.OpHeartbeat, &control.HeartbeatReq{CS: dataplane.CSID(n + 1),
					Boot: 2, Instance: 10*(n+1) + 2})
			}
		}
		s.Tick()
		if len(settles) > 0 {
			if p := &settles[0]; len(p.Lost) != 1 || p.Lost[0] != 3 {
				t.Errorf("a settling without %v", p.Lost)
			}
			return
		}
	}
	t.Error("a chunk keeps the member that is gone, and isn't copied")
}

// placeWorld has no place for chunks of three copies.
type placeWorld struct{ *recoverWorld }

func (w placeWorld) place(rec *Record) dataplane.CSID {
	if rec.Wanted == 3 {
		return 0
	}
	return w.room
}

// TestRecoveryDoesntStarve: more chunks than a round remembers have no place; one that has comes
// behind them in the table.
func TestRecoveryDoesntStarve(t *testing.T) {
	w, r := placeWorld{newRecoverWorld(maxNeeds + 100)}, newRecoverer(time.Minute)
	w.room = 2
	for _, rec := range w.list {
		rec.setMembers([]dataplane.CSID{1, 2})
	}
	last := w.list[len(w.list)-1]
	last.Wanted = 2
	last.setMembers([]dataplane.CSID{1})
	for now := int64(1); now < int64(time.Minute); now += int64(leaderTick) {
		if got := r.step(now, w, nil); len(got) > 0 {
			if got[0] != (recoverOrder{last.ID, 1, 2, 0}) {
				t.Errorf("%+v", got)
			}
			return
		}
	}
	t.Error("the chunk isn't copied")
}
