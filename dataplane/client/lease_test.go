package client

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// second opens another client of the cluster.
func (c *cluster) second(wait time.Duration) *Client {
	c.t.Helper()
	other, err := Open(context.Background(), ClientOptions{Cred: c.as(dataplane.RoleClient, 0),
		MDSAddrs: control.FixedAddrs(c.addr), Log: slog.New(slog.DiscardHandler), Host: "second",
		Engine: Options{LeaseWait: wait}})
	if err != nil {
		c.t.Fatal(err)
	}
	return other
}

// TestOneWriter: the second client opens and reads at once, its write is refused while the first
// one has the file open for writing, and goes through when that one has closed it.
func TestOneWriter(t *testing.T) {
	c := newCluster(t, 3)
	ctx := context.Background()
	a, err := c.client.Create(ctx, &control.CreateReq{Parent: dataplane.RootID, Name: "disk",
		Type: control.TypeFile, Mode: 0o600})
	if err != nil {
		t.Fatal(err)
	}
	source, err := c.client.OpenAttr(a)
	if err != nil {
		t.Fatal(err)
	}
	source.OpenForWrite()
	block := make([]byte, 4096)
	if _, err := source.WriteAt(block, 0); err != nil {
		t.Fatal(err)
	}
	other := c.second(300 * time.Millisecond)

	target, err := other.OpenFile(ctx, a.File)
	if err != nil {
		t.Fatal(err)
	}
	target.OpenForWrite()
	if _, err := target.ReadAt(block, 0); err != nil {
		t.Fatalf("read beside the writer: %v", err)
	}
	if _, err := target.WriteAt(block, 0); dataplane.KindOf(err) != dataplane.LeaseHeld {
		t.Fatalf("write beside the writer: %v", err)
	}
	source.CloseForWrite()
	for end := time.Now().Add(10 * time.Second); ; {
		_, err := target.WriteAt(block, 0)
		if err == nil {
			break
		}
		if dataplane.KindOf(err) != dataplane.LeaseHeld || time.Now().After(end) {
			t.Fatalf("write after the hand-over: %v", err)
		}
	}
	c.client.onLoop(func() { c.client.eng.opt.LeaseWait = 300 * time.Millisecond })
	if _, err := source.WriteAt(block, 0); err == nil {
		t.Fatal("the source writes after it gave the file up")
	}
	if err := other.Close(); err != nil { // gives back what it has
		t.Fatal(err)
	}
	if _, err := source.WriteAt(block, 0); err != nil {
		t.Fatalf("write after the other client has ended: %v", err)
	}
}

// TestRevoked: a client whose lease was revoked is refused until the file is opened anew; opens of
// before stay refused.
func TestRevoked(t *testing.T) {
	c := newCluster(t, 3)
	ctx := context.Background()
	a, err := c.client.Create(ctx, &control.CreateReq{Parent: dataplane.RootID, Name: "disk",
		Type: control.TypeFile, Mode: 0o600})
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.client.OpenAttr(a)
	if err != nil {
		t.Fatal(err)
	}
	old := f.OpenForWrite()
	write := func(r Right) error {
		done := make(chan error, 1)
		op := &Op{Kind: Write, File: f, Buf: make([]byte, 4096), Right: r}
		op.Done = func(op *Op) { done <- op.Err }
		c.client.Do(op)
		return <-done
	}
	if err := write(old); err != nil {
		t.Fatal(err)
	}
	c.client.onLoop(func() { f.loseLease(f.lease.token, "root@test") })
	if err := write(old); dataplane.KindOf(err) != dataplane.Fenced {
		t.Fatalf("after the revocation: %v", err)
	}
	if err := write(0); dataplane.KindOf(err) != dataplane.Fenced {
		t.Fatalf("without an open of its own: %v", err)
	}
	fresh := f.OpenForWrite()
	if err := write(fresh); err != nil {
		t.Fatalf("opened anew: %v", err)
	}
	if err := write(old); dataplane.KindOf(err) != dataplane.Fenced {
		t.Fatalf("the old open after a new one: %v", err)
	}
	if _, err := f.TruncateBy(ctx, old, 0); dataplane.KindOf(err) != dataplane.Fenced {
		t.Errorf("the old open cuts the file after a new one: %v", err)
	}
	if _, err := f.TruncateBy(ctx, fresh, 100); err != nil {
		t.Errorf("the new open cuts the file: %v", err)
	}
}

// TestMayWrite: an open that doesn't tell whether it will write has the lease from its first write
// until it ends. When all such opens have ended, the next one waits for another client anew.
func TestMayWrite(t *testing.T) {
	c := newCluster(t, 3)
	f := c.create("disk")
	e := c.client.eng
	open := func() { c.client.onLoop(func() { e.OpenForWrite(f) }) }
	end := func() { c.client.onLoop(func() { e.CloseForWrite(f) }) }
	expect := func(asks, holds bool) {
		t.Helper()
		c.client.onLoop(func() {
			if l := &f.lease; l.asking != asks || (l.status == leaseHeld) != holds {
				t.Errorf("asks for the lease: %v, status %d", l.asking, l.status)
			}
		})
	}
	open()
	expect(false, false)
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	open()
	end()
	expect(false, true)
	end()
	expect(false, false)

	other := c.second(time.Second)
	defer other.Close()
	theirs, err := other.OpenFile(context.Background(), f.ID())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	c.client.onLoop(func() { e.opt.LeaseWait = 100 * time.Millisecond })
	open()
	if _, err := f.WriteAt(make([]byte, 4096), 0); dataplane.KindOf(err) != dataplane.LeaseHeld {
		t.Errorf("a write beside another client: %v", err)
	}
	end()
	open()
	c.client.onLoop(func() {
		if f.lease.refused != 0 {
			t.Error("the next write doesn't wait for the other client to end")
		}
	})
	end()
}

// heldBack is a Leaser whose releases are answered when the test says so.
type heldBack struct{ answer func(error) }

func (*heldBack) AcquireLease(dataplane.FileID, uint64, func(*control.LeaseReply, error)) {}

func (m *heldBack) ReleaseLeases(_ []control.FileLease, cb func(error)) { m.answer = cb }

func (*heldBack) RenewLeases([]control.FileLease, func(*control.RenewLeasesReply, error)) {}

// TestReleaseCalledOff: the client is closed while it gives a lease back, which is called off by
// that. The lease is among those that are left to be given back.
func TestReleaseCalledOff(t *testing.T) {
	w := newWorld(t, 4, 1)
	f, m := w.file(0), &heldBack{}
	w.env.Do(func() {
		w.eng.leases.meta = m
		w.eng.leases.held = append(w.eng.leases.held, f)
		f.lease.status, f.lease.token = leaseHeld, 9
		f.dropLease()
		w.eng.Close()
		m.answer(dataplane.E("release write leases", dataplane.Closed, nil))
	})
	if left := w.eng.leftLeases(); len(left) != 1 || left[0].File != f.id || left[0].Token != 9 {
		t.Errorf("left to be given back: %v", left)
	}
}
