package mds

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// fuzzSim is metadata servers that are asked with arbitrary bytes. Commands are committed at once.
type fuzzSim struct {
	*Sim
	commits []func()
	peers   map[dataplane.Role]*control.Peer
	reqID   uint64
}

func newFuzzSim() *fuzzSim {
	now := int64(1e12)
	f := &fuzzSim{peers: map[dataplane.Role]*control.Peer{}}
	f.Sim = NewSim(SimOptions{Now: func() int64 { now += 1e6; return now },
		Wall:   func() int64 { return 1e18 + now },
		Commit: func(done func()) { f.commits = append(f.commits, done) },
		Push:   func(uint64, dataplane.Opcode, []byte) {}, Applied: func() {},
		Rand: rand.New(rand.NewPCG(1, 2)), Log: slog.New(slog.DiscardHandler)})
	f.Lead()
	return f
}

// ask gives a request to its handler and waits for the answer.
func (f *fuzzSim) ask(role dataplane.Role, op dataplane.Opcode, payload []byte) (answer any,
	err error) {
	p := f.peers[role]
	if p == nil {
		p = control.SimPeer(session.Peer{Role: role, ID: uint64(role) + 100},
			func(dataplane.Opcode, []byte) error { return nil })
		f.peers[role] = p
	}
	req := &control.RegisterCSReq{}
	if op == control.OpRegisterCS && control.Unmarshal(payload, req) == nil && f.excluding(req.Disk) {
		return nil, nil // it would wait for another thread
	}
	doc := &control.AdminReq{}
	if op == control.OpAdmin && control.Unmarshal(payload, doc) == nil &&
		(doc.Command == control.AdminStat || doc.Command == control.AdminListServices) {
		return nil, nil // these ask raft, which a simulation hasn't got
	}
	f.reqID++
	id := f.reqID
	f.start(func() { answer, err = f.srv.Handle(context.Background(), p, id, op, payload) })
	f.flush()
	for len(f.commits) > 0 {
		done := f.commits[0]
		f.commits = f.commits[1:]
		done()
	}
	return answer, err
}

// fuzzRequest is one request in a fuzzer's input: role, opcode, length (u16), payload.
func fuzzRequest(role dataplane.Role, op dataplane.Opcode, payload []byte) []byte {
	b := []byte{byte(role), byte(op), 0, 0}
	binary.LittleEndian.PutUint16(b[2:], uint16(len(payload)))
	return append(b, payload...)
}

// handlerSeeds is a life of a small cluster, with a request of every opcode.
func handlerSeeds() (all []byte) {
	seen := map[dataplane.Opcode]bool{}
	add := func(role dataplane.Role, op dataplane.Opcode, req any) {
		seen[op] = true
		all = append(all, fuzzRequest(role, op, control.Marshal(req))...)
	}
	admin := func(command string, args any) {
		doc, err := json.Marshal(args)
		if err != nil {
			panic(err)
		}
		add(dataplane.RoleAdmin, control.OpAdmin, &control.AdminReq{Command: command, Args: doc})
	}
	const client, cs = dataplane.RoleClient, dataplane.RoleCS
	for i := range 3 {
		add(cs, control.OpRegisterCS, &control.RegisterCSReq{Disk: [16]byte{byte(i + 1)}, Boot: 1,
			Addr: "10.0.0.1:1", Host: "h", Path: "/p", Capacity: 1 << 40})
	}
	one := 1
	admin(control.AdminSetAttr, &control.SetAttrArgs{Path: "/", Replicas: &one, Minimum: &one})
	add(client, control.OpCreate, &control.CreateReq{Parent: dataplane.RootID, Name: "f",
		Type: control.TypeFile, Mode: 0o600})
	file := dataplane.RootID + 1
	add(client, control.OpLookup, &control.LookupReq{Parent: dataplane.RootID, Name: "f"})
	add(client, control.OpGrow, &control.GrowReq{File: file, Size: 1 << 28})
	add(client, control.OpAllocate, &control.MapReq{File: file, Count: 4})
	add(client, control.OpGetMap, &control.MapReq{File: file, Count: 8, Watch: true})
	add(client, control.OpWatchMaps, &control.WatchMapsReq{Files: []dataplane.FileID{file, 99}})
	add(client, control.OpGetAttr, &control.FileReq{File: file})
	add(client, control.OpSetAttr, &control.SetAttrReq{File: file})
	add(client, control.OpReadDir, &control.ReadDirReq{Dir: dataplane.RootID})
	add(client, control.OpStatFS, &control.Empty{})
	add(client, control.OpSetXattr, &control.XattrReq{File: file, Name: "user.a", Value: []byte("b")})
	add(client, control.OpGetXattr, &control.XattrReq{File: file, Name: "user.a"})
	add(client, control.OpListXattr, &control.FileReq{File: file})
	add(cs, control.OpHeartbeat, &control.HeartbeatReq{CS: 1, Boot: 1})
	add(cs, control.OpGetChunk, &control.GetChunkReq{Chunk: 1 << 40})
	add(cs, control.OpReconfigure, &control.ReconfigureReq{Chunk: 1 << 40, Epoch: 1, SetCreated: true})
	add(client, control.OpUnreachable, &control.UnreachableReq{CS: 1})
	add(dataplane.RoleSupervisor, control.OpExited, &control.ExitedReq{CS: 1, Boot: 1})
	add(dataplane.RoleSupervisor, control.OpRefused, &control.RefusedReq{CS: 1, Host: "h", Path: "/p",
		Reason: "r"})
	add(cs, control.OpAddEvent, &control.Event{Code: "x", Message: "y"})
	for _, command := range []string{control.AdminStat, control.AdminListServices,
		control.AdminGetConfig} {
		admin(command, nil)
	}
	admin(control.AdminFileInfo, &control.PathArgs{Path: "/f"})
	admin(control.AdminGetAttr, &control.PathArgs{Path: "/f"})
	admin(control.AdminEvents, &control.EventsArgs{Limit: 3})
	admin(control.AdminSetConfig, &control.SetConfigArgs{Key: "capacity.limit", Value: "1000",
		Any: true})
	admin(control.AdminScrubStart, &control.ScrubArgs{})
	admin(control.AdminRmCS, &control.RmCSArgs{CS: []uint32{3}, Force: true})
	add(client, control.OpRename, &control.RenameReq{FromParent: dataplane.RootID, FromName: "f",
		ToParent: dataplane.RootID, ToName: "g"})
	add(client, control.OpUnlink, &control.UnlinkReq{Parent: dataplane.RootID, Name: "g"})
	for op := range 256 { // what isn't worth an example: zeros, from those who may ask
		h, ok := handlers[dataplane.Opcode(op)]
		if ok && !seen[dataplane.Opcode(op)] {
			role := dataplane.Role(bits.TrailingZeros8(h.roles))
			all = append(all, fuzzRequest(role, dataplane.Opcode(op), make([]byte, 64))...)
		}
	}
	return all
}

// FuzzHandlers asks the metadata servers anything, as any role: no request may panic, or keep the
// next from being answered.
func FuzzHandlers(f *testing.F) {
	f.Add(handlerSeeds())
	for op := range handlers {
		f.Add(append(handlerSeeds(), fuzzRequest(dataplane.RoleAdmin, op, []byte{1, 2, 3})...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<14 {
			t.Skip("long inputs find nothing that short ones don't")
		}
		s := newFuzzSim()
		defer s.Close()
		for len(b) >= 4 {
			n := min(int(binary.LittleEndian.Uint16(b[2:])), len(b)-4)
			_, _ = s.ask(dataplane.Role(b[0]%8), dataplane.Opcode(b[1]), b[4:4+n]) // any error will do
			b = b[4+n:]
			s.Tick()
		}
		answer, err := s.ask(dataplane.RoleClient, control.OpGetAttr,
			control.Marshal(&control.FileReq{File: dataplane.RootID}))
		if err != nil || answer == nil {
			t.Fatalf("afterwards the root can't be asked for: %v, %v", answer, err)
		}
	})
}

// TestHandlerSeeds: the fuzzer begins where requests succeed.
func TestHandlerSeeds(t *testing.T) {
	s := newFuzzSim()
	defer s.Close()
	seen, failed := map[dataplane.Opcode]bool{}, 0
	for b := handlerSeeds(); len(b) > 0; {
		n := int(binary.LittleEndian.Uint16(b[2:]))
		op := dataplane.Opcode(b[1])
		if _, err := s.ask(dataplane.Role(b[0]), op, b[4:4+n]); err != nil {
			t.Logf("%s: %v", control.OpName(op), err)
			failed++
		}
		seen[op] = true
		b = b[4+n:]
	}
	for op := range handlers {
		if !seen[op] {
			t.Errorf("%s isn't among the seeds", control.OpName(op))
		}
	}
	if failed > 10 {
		t.Errorf("%d of the requests fail", failed)
	}
}
