package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/mds"
	"pstorage/uring"
)

// These tests run a Client, on a real loop, against a real metadata server and simple chunk servers
// on real loops that keep chunks in memory.

// cluster is a metadata server and some toy chunk servers in this process.
type cluster struct {
	t      testing.TB
	addr   string // of the MDS
	cred   session.Credentials
	client *Client
	quiet  *slog.Logger

	mu     sync.Mutex // guards what follows
	chunks map[dataplane.ChunkID][]byte
	flips  map[dataplane.CSID]bool // these damage what they read
	life   uint32                  // of all chunks; 0: no writes are acknowledged from memory
	asked  func(dataplane.Opcode)  // nil, or is told of each request
	mute   bool                    // nobody answers
}

func newCluster(t testing.TB, servers int) *cluster {
	t.Helper()
	quiet := slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelError}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, addr: l.Addr().String(), chunks: map[dataplane.ChunkID][]byte{},
		flips: map[dataplane.CSID]bool{}, quiet: quiet}
	l.Close()
	c.cred = session.Credentials{Cluster: dataplane.ClusterID{1}, ClusterName: "test"}
	dir := filepath.Join(t.TempDir(), "mds")
	err = mds.Format(dir, mds.FormatOptions{Cluster: c.cred.Cluster, ClusterName: "test",
		Addr: c.addr})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- mds.Run(ctx, mds.Options{Dir: dir, Cred: c.as(dataplane.RoleMDS, 1), Log: quiet})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("metadata server: %v", err)
		}
	})
	for i := range servers {
		c.startToy(i + 1)
	}
	wait, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c.client, err = Open(wait, ClientOptions{Cred: c.as(dataplane.RoleClient, 0),
		MDSAddrs: control.FixedAddrs(c.addr), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.client.Close(); err != nil {
			t.Errorf("close the client: %v", err)
		}
	})
	return c
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) { l.t.Log(string(p)); return len(p), nil }

func (c *cluster) as(role dataplane.Role, id uint64) *session.Credentials {
	cred := c.cred
	cred.Role, cred.ID, cred.Name = role, id, fmt.Sprint(role, id)
	return &cred
}

// toy is a chunk server without replication: all of them share the chunks of the cluster.
type toy struct {
	c     *cluster
	id    dataplane.CSID
	reply dataplane.Header
	crcs  [128]byte
}

// startToy starts one, registers it and keeps its lease.
func (c *cluster) startToy(n int) {
	c.t.Helper()
	loop, err := uring.NewLoop(uring.LoopOptions{})
	if err != nil {
		c.t.Skip("no io_uring: ", err)
	}
	cs := &toy{c: c}
	cred := c.as(dataplane.RoleCS, uint64(n))
	addr, _, err := loop.Listen("127.0.0.1:0", func(conn uring.Conn) uring.ConnHandler {
		return session.NewConn(conn, loop, loop.Pool(), cred, false, cs)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctl, err := control.Dial(context.Background(), control.Options{Cred: cred,
		Addrs: control.FixedAddrs(c.addr), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var reg control.RegisterCSReply
	err = ctl.Call(ctx, control.OpRegisterCS, &control.RegisterCSReq{Disk: [16]byte{byte(n)},
		Boot: 1, Addr: addr, Host: fmt.Sprint("host", n), Path: "/x", Capacity: 1 << 40}, &reg)
	if err != nil {
		c.t.Fatal(err)
	}
	cs.id = reg.CS
	ran, beat := make(chan error, 1), make(chan struct{})
	go func() { ran <- loop.Run() }()
	go func() {
		defer close(beat)
		var fences uint64 // toys are told of fences and say so, but don't heed them
		for ctx.Err() == nil {
			var reply control.HeartbeatReply
			ctl.Call(ctx, control.OpHeartbeat, &control.HeartbeatReq{CS: reg.CS, Boot: 1,
				Capacity: 1 << 40, FenceSeq: fences}, &reply)
			fences = max(fences, reply.Fences.Seq)
			select {
			case <-ctx.Done():
			case <-time.After(dataplane.HeartbeatEvery):
			}
		}
	}()
	c.t.Cleanup(func() {
		stop()
		<-beat
		ctl.Close()
		loop.Stop()
		if err := <-ran; err != nil {
			c.t.Errorf("loop: %v", err)
		}
		loop.Close()
	})
}

func (cs *toy) Open(*session.Conn)          {}
func (cs *toy) Closed(*session.Conn, error) {}

func (cs *toy) Frame(c *session.Conn, h *dataplane.Header, crcs, payload []byte, _ *uring.Buf) {
	cs.c.mu.Lock()
	defer cs.c.mu.Unlock()
	if cs.c.asked != nil {
		cs.c.asked(h.Op)
	}
	if cs.c.mute {
		return
	}
	r := &cs.reply
	*r = h.Reply(dataplane.OK)
	r.Aux = cs.c.life
	data := cs.c.chunks[h.Chunk]
	if data == nil {
		data = make([]byte, dataplane.ChunkSize)
		cs.c.chunks[h.Chunk] = data
	}
	part := data[h.Offset : h.Offset+h.Length]
	switch h.Op {
	case dataplane.OpRead:
		r.Flags |= dataplane.FlagData
		r.Length = h.Length
		n := dataplane.PutCRCs(cs.crcs[:], h.Offset, part)
		if cs.c.flips[cs.id] {
			cs.crcs[1] ^= 1
		}
		c.Send(r, cs.crcs[:n], part)
		return
	case dataplane.OpWrite:
		if dataplane.CheckCRCs(crcs, h.Offset, payload) >= 0 {
			r.Status = dataplane.BadCRC
		} else {
			copy(part, payload)
		}
	case dataplane.OpZero:
		clear(part)
	}
	c.Send(r, nil, nil)
}

func (c *cluster) create(name string) *File {
	c.t.Helper()
	a, err := c.client.Create(context.Background(), &control.CreateReq{Parent: dataplane.RootID,
		Name: name, Type: control.TypeFile, Mode: 0644, Exclusive: true})
	if err != nil {
		c.t.Fatal(err)
	}
	f, err := c.client.OpenAttr(a)
	if err != nil {
		c.t.Fatal(err)
	}
	return f
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestClientData(t *testing.T) {
	c := newCluster(t, 3)
	f := c.create("f")
	defer f.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, 5<<20+77)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	const at = dataplane.ChunkSize - 1<<20 + 5
	n, err := f.WriteAt(data, at)
	check(t, err)
	if n != len(data) || f.Size() != at+uint64(len(data)) {
		t.Errorf("wrote %d, size %d", n, f.Size())
	}
	got := make([]byte, len(data))
	_, err = f.ReadAt(got, at)
	check(t, err)
	if !bytes.Equal(got, data) {
		t.Error("other data")
	}
	if n, err := f.ReadAt(got, at+5<<20); err != io.EOF || n != 77 {
		t.Errorf("at the end: %d %v", n, err)
	}
	c.mu.Lock()
	c.flips[1], c.flips[2] = true, true
	c.mu.Unlock()
	_, err = f.ReadAt(got, at)
	check(t, err)
	if !bytes.Equal(got, data) || c.client.Stats().BadCRCs == 0 {
		t.Errorf("with two bad servers: %v, %+v", bytes.Equal(got, data), c.client.Stats())
	}
	check(t, f.Flush())
	c.parallel(f)
}

// parallel writes and reads blocks of f from many goroutines.
func (c *cluster) parallel(f *File) {
	var all sync.WaitGroup
	for g := range 16 {
		all.Go(func() {
			buf := make([]byte, 4096)
			for i := range 100 {
				for j := range buf {
					buf[j] = byte(g * i)
				}
				off := int64(g*100+i) * 4096
				if _, err := f.WriteAt(buf, off); err != nil {
					c.t.Error(err)
				}
				got := make([]byte, 4096)
				if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, buf) {
					c.t.Errorf("%d/%d: %v", g, i, err)
				}
			}
		})
	}
	all.Wait()
}

func TestClientTruncate(t *testing.T) {
	c := newCluster(t, 3)
	ctx := context.Background()
	f := c.create("f")
	defer f.Close()
	const size = 2*dataplane.ChunkSize + 10000
	for off := int64(0); off < size; off += 1 << 20 {
		_, err := f.WriteAt(bytes.Repeat([]byte{7}, int(min(1<<20, size-off))), off)
		check(t, err)
	}
	for _, to := range []uint64{dataplane.ChunkSize + 5000, dataplane.ChunkSize, 4097, 0} {
		a, err := f.Truncate(ctx, to)
		check(t, err)
		if a.Size != to || f.Size() != to {
			t.Errorf("size %d at the MDS, %d here, want %d", a.Size, f.Size(), to)
		}
		_, err = f.Truncate(ctx, size)
		check(t, err)
		got := make([]byte, 20000)
		from := max(0, int64(to)-10000)
		_, err = f.ReadAt(got, from)
		check(t, err)
		for i, b := range got {
			if want := byte(7); (from+int64(i) < int64(to)) != (b == want) {
				t.Fatalf("truncated to %d: byte %d is %d", to, from+int64(i), b)
			}
		}
		_, err = f.Truncate(ctx, to)
		check(t, err)
	}
	if _, err := f.Truncate(ctx, MaxFileSize+1); dataplane.KindOf(err) != dataplane.TooLarge {
		t.Errorf("too large: %v", err)
	}
}

// TestTruncateIsCalledOff: a truncation whose chunk servers don't answer ends with its context.
func TestTruncateIsCalledOff(t *testing.T) {
	c := newCluster(t, 3)
	f := c.create("f")
	defer f.Close()
	_, err := f.WriteAt(make([]byte, 10000), 0)
	check(t, err)
	answer := func(yes bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.mute = !yes
	}
	answer(false)
	ctx, stop := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, stop)
	ended := make(chan error, 1)
	go func() {
		_, err := f.Truncate(ctx, 100)
		ended <- err
	}()
	select {
	case err = <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("truncate: %v", err)
		}
		answer(true)
	case <-time.After(5 * time.Second):
		t.Error("it waits on")
		answer(true)
		<-ended
	}
	_, err = f.Truncate(context.Background(), 100)
	check(t, err)
}

func TestClientSeek(t *testing.T) {
	c := newCluster(t, 3)
	ctx := context.Background()
	f := c.create("f")
	defer f.Close()
	const chunk = dataplane.ChunkSize
	_, err := f.WriteAt([]byte("x"), 2*chunk+5)
	check(t, err)
	check(t, f.Grow(ctx, 1200*chunk))
	for _, tt := range []struct {
		off  int64
		hole bool
		want int64
	}{{0, false, 2 * chunk}, {2*chunk + 7, false, 2*chunk + 7}, {0, true, 0}, {2 * chunk, true,
		3 * chunk}, {1199*chunk + 3, true, 1199*chunk + 3}, {3 * chunk, false, -1},
		{1200 * chunk, true, -1}} {
		got, err := f.Seek(ctx, tt.off, tt.hole)
		if dataplane.KindOf(err) == dataplane.NotFound {
			got = -1
		} else {
			check(t, err)
		}
		if got != tt.want {
			t.Errorf("seek from %d, hole %v: %d, want %d", tt.off, tt.hole, got, tt.want)
		}
	}
}

func TestClientNames(t *testing.T) {
	c := newCluster(t, 1)
	ctx := context.Background()
	d, err := c.client.Mkdir(ctx, dataplane.RootID, "d", 0755)
	check(t, err)
	_, err = c.client.Create(ctx, &control.CreateReq{Parent: d.File, Name: "s",
		Type: control.TypeSymlink, Target: "../f"})
	check(t, err)
	_, err = c.client.Create(ctx, &control.CreateReq{Parent: d.File, Name: "loop",
		Type: control.TypeSymlink, Target: "/d/loop"})
	check(t, err)
	f := c.create("f")
	g, err := c.client.OpenPath(ctx, "/d/../d/./s")
	check(t, err)
	if g != f {
		t.Error("two Files for one file")
	}
	if _, err := c.client.OpenPath(ctx, "/d/loop"); dataplane.KindOf(err) != dataplane.Invalid {
		t.Errorf("symlink to itself: %v", err)
	}
	if _, err := c.client.OpenPath(ctx, "/d"); dataplane.KindOf(err) != dataplane.IsDir {
		t.Errorf("open of a directory: %v", err)
	}
	if _, err := c.client.OpenPath(ctx, "/x"); dataplane.KindOf(err) != dataplane.NotFound {
		t.Errorf("open of nothing: %v", err)
	}
	check(t, f.Close())
	check(t, g.Close())
	if err := f.Close(); dataplane.KindOf(err) != dataplane.Closed {
		t.Errorf("closed a third time: %v", err)
	}
	check(t, c.client.SetXattr(ctx, d.File, "user.x", []byte("v"), 0))
	if v, err := c.client.GetXattr(ctx, d.File, "user.x"); err != nil || string(v) != "v" {
		t.Errorf("xattr: %q %v", v, err)
	}
	if v, err := c.client.ListXattr(ctx, d.File); err != nil || string(v) != "user.x\x00" {
		t.Errorf("xattrs: %q %v", v, err)
	}
	check(t, c.client.RemoveXattr(ctx, d.File, "user.x"))
	check(t, c.client.Rename(ctx, &control.RenameReq{FromParent: dataplane.RootID, FromName: "f",
		ToParent: d.File, ToName: "g"}))
	r, err := c.client.ReadDir(ctx, d.File, "", 10)
	check(t, err)
	if len(r.Entries) != 3 || r.Entries[0].Name != "g" {
		t.Errorf("%+v", r)
	}
	check(t, c.client.Unlink(ctx, d.File, "g", false))
	if _, err := c.client.StatFS(ctx); err != nil {
		t.Error(err)
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open(context.Background(), ClientOptions{}); err == nil {
		t.Error("opened without options")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, ClientOptions{Cred: &session.Credentials{Role: dataplane.RoleClient},
		MDSAddrs: control.FixedAddrs("127.0.0.1:1"), Log: slog.New(slog.DiscardHandler)})
	if k := dataplane.KindOf(err); k != dataplane.Unreachable {
		t.Errorf("nobody there: %v", err)
	}
}

func TestCloseUnderLoad(t *testing.T) {
	c := newCluster(t, 3)
	f := c.create("f")
	_, err := f.WriteAt(make([]byte, 1<<20), 0)
	check(t, err)
	var all sync.WaitGroup
	stopped := make(chan struct{})
	for range 8 {
		all.Go(func() {
			buf := make([]byte, 64<<10)
			for {
				select {
				case <-stopped:
					return
				default:
				}
				if _, err := f.ReadAt(buf, 0); err != nil {
					if dataplane.KindOf(err) != dataplane.Closed {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	time.Sleep(20 * time.Millisecond) // some load, the more the better; nothing depends on it
	eng := c.client.eng
	c.client.loop.Post(func() { eng.Close() })
	all.Wait()
	close(stopped)
}

func BenchmarkClient4K(b *testing.B) {
	c := newCluster(b, 3)
	f := c.create("f")
	_, err := f.WriteAt(make([]byte, 16<<20), 0)
	check(b, err)
	for _, kind := range []OpKind{Read, Write} {
		b.Run(kind.String()+"/QD32", func(b *testing.B) { benchClient(b, c.client, f, kind, 32) })
	}
}

func benchClient(b *testing.B, c *Client, f *File, kind OpKind, depth int) {
	b.ReportAllocs()
	var left, running = b.N, 0
	done := make(chan struct{})
	rng := uint64(1)
	next := func(op *Op) { // on the loop's thread
		running--
		if op.Err != nil {
			b.Error(op.Err)
		}
		if left > 0 {
			left--
			running++
			rng = mix(rng)
			op.Offset = int64(rng%4096) * 4096
			c.eng.Submit(op)
		} else if running == 0 {
			close(done)
		}
	}
	b.ResetTimer()
	c.loop.Post(func() {
		for range depth {
			op := &Op{Kind: kind, File: f, Buf: make([]byte, 4096), Done: next}
			running++
			c.eng.Submit(op)
		}
	})
	<-done
}
