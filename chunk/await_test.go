package chunk

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
)

// TestAwaitWrites: a server doesn't begin before the locks of its store and its journal are free,
// which the kernel keeps for a killed process as long as it writes for it; and it holds both.
func TestAwaitWrites(t *testing.T) {
	dir, m := filepath.Join(t.TempDir(), "cs"), startTableMDS(t)
	if err := Format(dir, FormatOptions{Cluster: realCluster, ClusterName: "t", Addr: "127.0.0.1",
		LogSize: 16 << 20, Capacity: dataplane.ChunkSize}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{storeFile, cacheFile} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- Run(ctx, Options{Dir: dir, Cred: realCred(dataplane.RoleCS, 0),
				ListenAddr: "127.0.0.1", MDS: func() []string { return []string{m.addr} },
				OnReady: func(dataplane.CSID, string) { close(ready) }})
		}()
		select {
		case <-ready:
			t.Errorf("it serves while somebody may write to its %s", name)
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(500 * time.Millisecond):
		}
		f.Close()
		select {
		case <-ready:
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(20 * time.Second):
			t.Fatal("it doesn't begin")
		}
		for _, name := range []string{storeFile, cacheFile} {
			f, err := os.Open(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
				t.Errorf("the %s of a server at work can be locked: %v", name, err)
			}
			f.Close()
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	// One that is to stop meanwhile does.
	f, err := os.Open(filepath.Join(dir, storeFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err = Run(ctx, Options{Dir: dir, Cred: realCred(dataplane.RoleCS, 0), ListenAddr: "127.0.0.1",
		MDS: func() []string { return []string{m.addr} }})
	if err == nil || !strings.Contains(err.Error(), storeFile) {
		t.Errorf("stopped while it waits: %v", err)
	}
}
