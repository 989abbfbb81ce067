package mds

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// leaseWorld is a Sim with a clock of its own, in which commands are committed at once, and one
// regular file.
type leaseWorld struct {
	t    *testing.T
	sim  *Sim
	now  int64
	req  uint64
	file dataplane.FileID
	// pushed are the fences that chunk servers were told of.
	pushed []control.FencePush
}

func newLeaseWorld(t *testing.T) *leaseWorld {
	w := &leaseWorld{t: t, now: 1}
	w.sim = NewSim(SimOptions{Now: func() int64 { return w.now },
		Wall:   func() int64 { return w.now },
		Commit: func(done func()) { done() }, Applied: func() {},
		Push: func(_ uint64, op dataplane.Opcode, payload []byte) {
			var p control.FencePush
			if op == control.OpFence && control.Unmarshal(payload, &p) == nil {
				w.pushed = append(w.pushed, p)
			}
		},
		Rand: rand.New(rand.NewPCG(1, 2)), Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(w.sim.Close)
	w.sim.Lead()
	var a control.Attr
	w.ask(7, dataplane.RoleClient, control.OpCreate, &control.CreateReq{Parent: dataplane.RootID,
		Name: "disk", Type: control.TypeFile, Mode: 0o600}, &a)
	w.file = a.File
	return w
}

func (w *leaseWorld) try(peer uint64, role dataplane.Role, op dataplane.Opcode, req, reply any) (
	err error) {
	w.t.Helper()
	w.req++
	answered := false
	w.sim.Handle(role, peer, w.req, op, req, func(p []byte, e error) {
		answered, err = true, e
		if e == nil && reply != nil {
			err = control.Unmarshal(p, reply)
		}
	})
	if !answered {
		w.t.Fatalf("%s: no answer", control.OpName(op))
	}
	return err
}

func (w *leaseWorld) ask(peer uint64, role dataplane.Role, op dataplane.Opcode, req, reply any) {
	w.t.Helper()
	if err := w.try(peer, role, op, req, reply); err != nil {
		w.t.Fatalf("%s by %d: %v", control.OpName(op), peer, err)
	}
}

func (w *leaseWorld) acquire(client, token uint64) (r control.LeaseReply) {
	w.t.Helper()
	w.ask(client, dataplane.RoleClient, control.OpAcquireLease,
		&control.AcquireLeaseReq{File: w.file, Token: token, Host: "h", Mount: "/m"}, &r)
	return r
}

func (w *leaseWorld) release(client, token uint64, unclean bool) {
	w.t.Helper()
	w.ask(client, dataplane.RoleClient, control.OpReleaseLeases, &control.ReleaseLeasesReq{
		Leases: []control.FileLease{{File: w.file, Token: token, Unclean: unclean}}}, nil)
}

func (w *leaseWorld) renew(client, token uint64) (r control.RenewLeasesReply) {
	w.t.Helper()
	w.ask(client, dataplane.RoleClient, control.OpRenewLeases, &control.RenewLeasesReq{
		Leases: []control.FileLease{{File: w.file, Token: token}}}, &r)
	return r
}

func (w *leaseWorld) register(cs byte) (r control.RegisterCSReply) {
	w.t.Helper()
	w.ask(1000+uint64(cs), dataplane.RoleCS, control.OpRegisterCS, &control.RegisterCSReq{
		Disk: [16]byte{cs}, Boot: 1, Addr: "10.0.0.1:1", Host: "h", Path: "/cs",
		Instance: uint64(cs), Capacity: 1 << 40}, &r)
	return r
}

func (w *leaseWorld) beat(cs byte, id dataplane.CSID, seq uint64) (r control.HeartbeatReply) {
	w.t.Helper()
	w.ask(1000+uint64(cs), dataplane.RoleCS, control.OpHeartbeat, &control.HeartbeatReq{CS: id,
		Boot: 1, Instance: uint64(cs), FenceSeq: seq}, &r)
	return r
}

// TestLeaseHandOver: a file goes on at once after a release in good order; a client in the way is
// named; a release of an older grant takes nothing away.
func TestLeaseHandOver(t *testing.T) {
	w := newLeaseWorld(t)
	w.register(1)
	a := w.acquire(7, 0)
	if !a.Granted || a.Token == 0 {
		t.Fatalf("first grant: %+v", a)
	}
	if b := w.acquire(8, 0); b.Granted || b.Fencing || b.Holder != 7 || b.HolderHost != "h" {
		t.Fatalf("while it is held: %+v", b)
	}
	again := w.acquire(7, 0)
	if !again.Granted || again.Token <= a.Token {
		t.Fatalf("second grant to the holder: %+v after %+v", again, a)
	}
	w.release(7, a.Token, false) // was on its way since before
	if b := w.acquire(8, 0); b.Granted {
		t.Fatal("granted after the release of an older grant")
	}
	w.release(7, again.Token, false)
	b := w.acquire(8, 0)
	if !b.Granted || b.Token <= again.Token || len(w.pushed) > 0 {
		t.Fatalf("after the release: %+v, %d fences", b, len(w.pushed))
	}
	if r := w.renew(7, again.Token); len(r.Lost) != 1 {
		t.Errorf("renewal by a client that released: %+v", r)
	}
}

// TestLeaseExpiry: a silent client loses the file after the time of a lease, not earlier, and only
// when every chunk server that may serve has the fence in force; a new leader waits as long again.
func TestLeaseExpiry(t *testing.T) {
	w := newLeaseWorld(t)
	one, two := w.register(1), w.register(2)
	a := w.acquire(7, 0)
	step := func(d time.Duration) {
		for end := w.now + int64(d); w.now < end; w.now += int64(dataplane.HeartbeatEvery) {
			w.beat(1, one.CS, 0)
			w.beat(2, two.CS, 0)
		}
	}
	step(dataplane.FileLeaseTime - time.Second)
	if b := w.acquire(8, 0); b.Granted || b.Fencing {
		t.Fatalf("taken too early: %+v", b)
	}
	w.renew(7, a.Token)
	step(dataplane.FileLeaseTime - time.Second)
	w.sim.Depose()
	w.sim.Lead()
	w.register(1)
	w.register(2)
	step(dataplane.FileLeaseTime - time.Second)
	if b := w.acquire(8, 0); b.Granted || b.Fencing {
		t.Fatalf("taken too early by a new leader: %+v", b)
	}
	step(2 * time.Second)
	b := w.acquire(8, 0)
	if b.Granted || !b.Fencing || b.Token <= a.Token || len(w.pushed) == 0 {
		t.Fatalf("taken: %+v, %d pushes", b, len(w.pushed))
	}
	f := w.beat(1, one.CS, 0).Fences
	if len(f.Fences) != 1 || f.Fences[0] != (control.FileFence{File: w.file, Token: b.Token}) {
		t.Fatalf("fences in a heartbeat's reply: %+v", f)
	}
	w.beat(1, one.CS, f.Seq)
	if b := w.acquire(8, b.Token); b.Granted {
		t.Fatal("granted while a chunk server doesn't know the fence")
	}
	// A leader that just began doesn't know who has it, and waits for both.
	w.sim.Depose()
	w.sim.Lead()
	if r := w.register(1); len(r.Fences.Fences) != 1 {
		t.Fatalf("fences in a registration's reply: %+v", r)
	}
	w.beat(1, one.CS, f.Seq)
	if b := w.acquire(8, b.Token); b.Granted {
		t.Fatal("granted by a new leader while a chunk server may serve without the fence")
	}
	// CS 2 is never heard of again: its lease runs out.
	for range 5 {
		w.now += int64(dataplane.HeartbeatEvery)
		w.beat(1, one.CS, f.Seq)
	}
	if got := w.acquire(8, b.Token); !got.Granted || got.Token != b.Token {
		t.Fatalf("with the other's lease over: %+v", got)
	}
	if r := w.renew(7, a.Token); len(r.Lost) != 1 || r.Lost[0].By == "" {
		t.Errorf("the old holder isn't told: %+v", r)
	}
	if p := w.beat(1, one.CS, f.Seq).Fences; len(p.Fences) > 0 {
		t.Errorf("fences that it has: %+v", p)
	}
}

// TestRevoke: the holder is fenced at once; of another client's files nothing happens.
func TestRevoke(t *testing.T) {
	w := newLeaseWorld(t)
	one := w.register(1)
	a := w.acquire(7, 0)
	revoke := func(args control.RevokeArgs) (doc control.RevokeDoc) {
		t.Helper()
		w.admin(control.AdminRevoke, args, &doc)
		return doc
	}
	d := revoke(control.RevokeArgs{Path: "/", Recursive: true, Client: 99})
	if len(d.Revoked) != 0 || d.Seq != 0 {
		t.Fatalf("another client: %+v", d)
	}
	d = revoke(control.RevokeArgs{Client: 7, All: true, By: "root@x"})
	if len(d.Revoked) != 1 || d.Revoked[0].Path != "/disk" || len(d.Waiting) != 1 {
		t.Fatalf("revoked: %+v", d)
	}
	for _, args := range []control.RevokeArgs{{Path: "/disk"},
		{Path: "/", Recursive: true}} {
		again := revoke(args) // as by a client that didn't get the answer
		if len(again.Revoked) != 0 || again.Seq != d.Seq || len(again.Waiting) != 1 {
			t.Errorf("revoked already, and not in force: %+v", again)
		}
	}
	if r := w.renew(7, a.Token); len(r.Lost) != 1 || r.Lost[0].By != "root@x" {
		t.Fatalf("renewal: %+v", r)
	}
	if b := w.acquire(8, 0); b.Granted || !b.Fencing {
		t.Fatalf("before the fence is in force: %+v", b)
	}
	w.beat(1, one.CS, d.Seq)
	w.admin(control.AdminRevokeWait, control.RevokeWaitArgs{Seq: d.Seq}, &d)
	if len(d.Waiting) != 0 {
		t.Fatalf("in force, but waiting: %+v", d)
	}
	if b := w.acquire(7, 0); b.Granted {
		t.Fatal("the lease is client 8's")
	}
	if d := revoke(control.RevokeArgs{Path: "/disk"}); len(d.Revoked) != 1 {
		t.Fatalf("of a path: %+v", d)
	}
	err := w.try(5, dataplane.RoleAdmin, control.OpAdmin, adminReq(t, control.AdminRevoke,
		control.RevokeArgs{Path: "/"}), nil)
	if dataplane.KindOf(err) != dataplane.IsDir {
		t.Errorf("a directory: %v", err)
	}
}

// TestRevokedAgain: a request to revoke, repeated as its answer was lost, takes nothing from the
// client that was waiting for the file.
func TestRevokedAgain(t *testing.T) {
	w := newLeaseWorld(t)
	w.acquire(7, 0)
	revoke := func() (doc control.RevokeDoc) {
		t.Helper()
		w.admin(control.AdminRevoke, control.RevokeArgs{Path: "/disk", By: "root@x"}, &doc)
		return doc
	}
	request := w.req
	first := revoke()
	if len(first.Revoked) != 1 || first.Seq == 0 {
		t.Fatalf("revoked: %+v", first)
	}
	b := w.acquire(8, 0)
	for !b.Granted {
		w.now += int64(time.Second)
		b = w.acquire(8, b.Token)
	}
	w.req = request
	if again := revoke(); len(again.Revoked) != 0 || again.Seq != first.Seq {
		t.Errorf("again: %+v", again)
	}
	if r := w.renew(8, b.Token); len(r.Lost) != 0 {
		t.Errorf("the next client has lost the file: %+v", r)
	}
	if next := revoke(); len(next.Revoked) != 1 {
		t.Errorf("a new request: %+v", next)
	}
}

// TestLeaseSnapshot: leases survive a snapshot, and go with their file.
func TestLeaseSnapshot(t *testing.T) {
	w := newLeaseWorld(t)
	w.register(1)
	a := w.acquire(7, 0)
	w.release(7, a.Token, true)
	w.acquire(8, 0)
	s := w.sim.srv.r.fsm.s
	sn, err := s.Capture()
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := sn.Write(&buf); err != nil {
		t.Fatal(err)
	}
	sn.Release()
	got, err := Restore(&buf)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if got.leaseOf(w.file) != s.leaseOf(w.file) || got.leases.token != s.leases.token {
		t.Errorf("lease %+v, was %+v", got.leaseOf(w.file), s.leaseOf(w.file))
	}
	if p := got.fencesAfter(0); len(p.Fences) != 1 || p.Seq != s.leases.fenceSeq {
		t.Errorf("fences %+v", p)
	}
	w.ask(7, dataplane.RoleClient, control.OpUnlink, &control.UnlinkReq{Parent: dataplane.RootID,
		Name: "disk"}, nil)
	if p := s.fencesAfter(0); len(p.Fences) != 0 {
		t.Errorf("fences of a file that is gone: %+v", p)
	}
	if err := w.try(7, dataplane.RoleClient, control.OpAcquireLease,
		&control.AcquireLeaseReq{File: w.file}, nil); dataplane.KindOf(err) != dataplane.NotFound {
		t.Errorf("lease of a file that is gone: %v", err)
	}
}

func adminReq(t *testing.T, command string, args any) *control.AdminReq {
	t.Helper()
	b, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	return &control.AdminReq{Command: command, Args: b}
}

func (w *leaseWorld) admin(command string, args, doc any) {
	w.t.Helper()
	var r control.AdminReply
	w.ask(5, dataplane.RoleAdmin, control.OpAdmin, adminReq(w.t, command, args), &r)
	if err := json.Unmarshal(r.Doc, doc); err != nil {
		w.t.Fatal(err)
	}
}

// TestManyLeasesLost: a client that lost more leases than fit an answer is told of some of them,
// and of the others when it asks for those again.
func TestManyLeasesLost(t *testing.T) {
	s := newFuzzSim()
	defer s.Close()
	st := s.srv.r.fsm.s
	client := uint64(dataplane.RoleClient) + 100 // whom fuzzSim asks as
	var leases []control.FileLease
	for i := range control.MaxRenew {
		f := do(t, st, 1, &cmdCreate{CreateReq: control.CreateReq{Parent: dataplane.RootID,
			Name: fmt.Sprint(i), Type: control.TypeFile}}).Attr.File
		l := do(t, st, 1, &cmdLease{Action: leaseGrant, File: f, Client: client}).Lease
		do(t, st, 1, &cmdLease{Action: leaseGrant, File: f, Client: 9, Token: l.token,
			Host: "storage-0123.rack12.example.org"})
		leases = append(leases, control.FileLease{File: f, Token: l.token})
	}
	for len(leases) > 0 {
		answer, err := s.ask(dataplane.RoleClient, control.OpRenewLeases,
			control.Marshal(&control.RenewLeasesReq{Leases: leases}))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(control.Marshal(answer)); n > dataplane.MaxControlPayload {
			t.Fatalf("an answer of %d bytes, a message has %d", n, dataplane.MaxControlPayload)
		}
		lost := answer.(*control.RenewLeasesReply).Lost
		if len(lost) == 0 || lost[0].File != leases[0].File {
			t.Fatalf("%d leases are lost, and %d are said to be", len(leases), len(lost))
		}
		leases = leases[len(lost):]
	}
}

// TestFencesToMany: what a fleet of chunk servers lacks is looked up once for all that lack the
// same, as the state and the leader are locked meanwhile.
func TestFencesToMany(t *testing.T) {
	const files, servers = 20_000, 2000
	w := newLeaseWorld(t)
	l, s := w.sim.l, w.sim.srv.r.fsm.s
	for i := range uint64(files) {
		s.noteFence(dataplane.FileID(100+i), i+1)
	}
	s.leases.fenceSeq = files
	told := 0
	for i := range servers {
		id := dataplane.CSID(i + 1)
		s.cs = append(s.cs, &CS{ID: id})
		l.link(id).peer = control.SimPeer(session.Peer{}, func(_ dataplane.Opcode, b []byte) error {
			var p control.FencePush
			if control.Unmarshal(b, &p) == nil && p.After == files-1 && len(p.Fences) == 1 {
				told++
			}
			return nil
		})
		l.fenceAck(id, files-1)
	}
	began := time.Now()
	l.pushFences(s)
	took := time.Since(began)
	if told != servers {
		t.Errorf("%d of %d servers were told", told, servers)
	}
	if took > 250*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}
