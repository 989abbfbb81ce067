package mds

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// benchServer is one server without a network: requests go straight to Handle.
func benchServer(b *testing.B) *server {
	dir := b.TempDir() + "/mds"
	cred := &session.Credentials{Cluster: dataplane.ClusterID{1}, ClusterName: "bench",
		Role: dataplane.RoleMDS}
	err := Format(dir, FormatOptions{Cluster: cred.Cluster, ClusterName: "bench",
		Addr: "127.0.0.1:1"})
	if err != nil {
		b.Fatal(err)
	}
	r, err := startReplica(dir+"/"+raftDir, 1, "127.0.0.1:1", cred, testLog(), nil)
	if err != nil {
		b.Fatal(err)
	}
	s := &server{r: r, log: testLog()}
	ctx, cancel := context.WithCancel(context.Background())
	ended, leading := make(chan struct{}), make(chan bool, 2)
	go func() {
		defer close(ended)
		s.watchLeadership(ctx, func(on bool) { leading <- on })
	}()
	<-leading
	b.Cleanup(func() {
		cancel()
		<-ended
		r.shutdown()
	})
	for i := range byte(20) {
		_, err := r.propose(ctx, &cmdRegisterCS{Instance: 1, CS: CS{Disk: [16]byte{i + 1}, Boot: 1,
			Addr: "127.0.0.1:1", Host: fmt.Sprint("h", i), Capacity: 1 << 50}})
		if err != nil {
			b.Fatal(err)
		}
	}
	keepLive(b, s)
	return s
}

// keepLive gives leases to all chunk servers for as long as the benchmark runs.
func keepLive(b *testing.B, s *server) {
	quit := make(chan struct{})
	b.Cleanup(func() { close(quit) })
	l := s.lead.Load()
	go func() {
		for {
			l.mu.Lock()
			for i := range dataplane.CSID(20) {
				l.leases.registered(i+1, l.now())
			}
			l.mu.Unlock()
			select {
			case <-quit:
				return
			case <-time.After(dataplane.HeartbeatEvery):
			}
		}
	}()
}

// ask is a request as a connection would make it, reply encoded.
func ask(b *testing.B, s *server, peer *control.Peer, id uint64, op dataplane.Opcode, req any) {
	reply, err := s.Handle(context.Background(), peer, id, op, control.Marshal(req))
	if err != nil {
		b.Error(err)
		return
	}
	control.Marshal(reply)
}

func benchFile(b *testing.B, s *server) dataplane.FileID {
	r, err := s.r.propose(context.Background(), &cmdCreate{CreateReq: createReq("f")})
	if err != nil {
		b.Fatal(err)
	}
	return r.Attr.File
}

func benchPeer() *control.Peer {
	return &control.Peer{Peer: session.Peer{Role: dataplane.RoleClient, ID: 7}}
}

// BenchmarkGetMap asks for the maps of single chunks.
func BenchmarkGetMap(b *testing.B) {
	s := benchServer(b)
	f, peer := benchFile(b, s), benchPeer()
	ask(b, s, peer, 1, control.OpAllocate, &control.MapReq{File: f, Count: 1000})
	b.ReportAllocs()
	i := uint32(0)
	for b.Loop() {
		ask(b, s, peer, 2, control.OpGetMap, &control.MapReq{File: f, First: i % 1000, Count: 1})
		i++
	}
	b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "maps/s")
}

// BenchmarkAllocate allocates with 64 requests at once, 16 chunks each, durably.
func BenchmarkAllocate(b *testing.B) {
	s := benchServer(b)
	f, peer := benchFile(b, s), benchPeer()
	var next atomic.Uint32
	var workers sync.WaitGroup
	b.ResetTimer()
	for range 64 {
		workers.Go(func() {
			for {
				i := next.Add(1)
				if int(i) > b.N {
					return
				}
				ask(b, s, peer, uint64(i), control.OpAllocate, &control.MapReq{File: f,
					First: i * 16 % (MaxFileChunks - 16), Count: 16})
			}
		})
	}
	workers.Wait()
	b.ReportMetric(float64(b.N*16)/b.Elapsed().Seconds(), "chunks/s")
}

// BenchmarkCreate makes files with 64 requests at once, durably.
func BenchmarkCreate(b *testing.B) {
	s := benchServer(b)
	peer := benchPeer()
	var next atomic.Uint64
	var workers sync.WaitGroup
	b.ResetTimer()
	for range 64 {
		workers.Go(func() {
			for {
				i := next.Add(1)
				if int(i) > b.N {
					return
				}
				ask(b, s, peer, i, control.OpCreate, createReq(fmt.Sprint(i)))
			}
		})
	}
	workers.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
}
