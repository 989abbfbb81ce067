package chunk

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// serverDirs are chunk servers with some history, and copies of their files from before.
type serverDirs struct {
	t   *testing.T
	dir string // has data, was started three times
	old string // a copy from after the first start
	// other is another chunk server, alike.
	other string
	next  uint64
}

func (s *serverDirs) use(dir string, m *tableMDS, id dataplane.ChunkID, writes int) {
	s.t.Helper()
	r := runReal(s.t, dir, m)
	m.add(id, r.id)
	nc := dialReal(s.t, r.addr, dataplane.RoleClient)
	for range writes {
		s.next++
		h := dataplane.Header{Op: dataplane.OpWrite, ReqID: s.next, Chunk: id, Epoch: 1,
			Offset: uint32(s.next%1000) * 4096}
		if st, _ := ask(s.t, nc, h, pattern(s.next, 4096)); st != dataplane.OK {
			s.t.Fatalf("write: %v", st)
		}
	}
	nc.Close()
	r.end(s.t)
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// The store is sparse: copy what it has.
	info, _ := in.Stat()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < info.Size(); off += int64(len(buf)) {
		n, err := in.ReadAt(buf, off)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !isZero(buf[:n&^7]) || n%8 != 0 {
			if _, err := out.WriteAt(buf[:n], off); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := out.Truncate(info.Size()); err != nil {
		t.Fatal(err)
	}
}

var serverFiles = []string{identityFile, storeFile, cacheFile}

func copyDir(t *testing.T, to, from string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range serverFiles {
		copyFile(t, filepath.Join(to, name), filepath.Join(from, name))
	}
}

// hashes sums up what is in a directory.
func hashes(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	for _, name := range serverFiles {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			io.WriteString(sum, "none")
			continue
		}
		io.Copy(sum, f)
		f.Close()
	}
	return string(sum.Sum(nil))
}

// Whatever of a chunk server's files is missing, another server's, or older than the others: it
// refuses, says which and what to do, and changes nothing.
func TestRefusals(t *testing.T) {
	base := t.TempDir()
	s := &serverDirs{t: t, dir: filepath.Join(base, "cs"), old: filepath.Join(base, "old"),
		other: filepath.Join(base, "other")}
	m := startTableMDS(t)
	for _, dir := range []string{s.dir, s.other} {
		if err := Format(dir, FormatOptions{Cluster: realCluster, ClusterName: "t", Addr: "127.0.0.1",
			LogSize: 16 << 20, Capacity: dataplane.ChunkSize}); err != nil {
			t.Fatal(err)
		}
	}
	s.use(s.dir, m, chunkA, 20)
	s.use(s.other, m, chunkA+1, 20)
	copyDir(t, s.old, s.dir)
	s.use(s.dir, m, chunkA, 20)
	s.use(s.dir, m, chunkA, 20)

	from := func(src string, names ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				copyFile(t, filepath.Join(dir, name), filepath.Join(src, name))
			}
		}
	}
	without := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, name)) }
	}
	cases := []struct {
		name string
		do   func(t *testing.T, dir string)
		says []string // all in the message
	}{
		{"journal missing", without(cacheFile), []string{"journal is missing", "/cache", "put back"}},
		{"store missing", without(storeFile), []string{"store is missing", "/store", "put back"}},
		{"identity missing", without(identityFile),
			[]string{"identity", "missing", "Put the file back"}},
		{"journal of another CS", from(s.other, cacheFile), []string{"another chunk server", "/cache"}},
		{"store of another CS", from(s.other, storeFile), []string{"another chunk server", "/store"}},
		{"identity of another CS", from(s.other, identityFile),
			[]string{"another chunk server", "identity"}},
		{"journal older than the store", from(s.old, cacheFile),
			[]string{"journal", "older than the store", "older copy", "Put the right one back"}},
		{"store older than the journal", from(s.old, storeFile),
			[]string{"older than", "store", "Put the right one back"}},
		{"identity older than the store", from(s.old, identityFile),
			[]string{"identity", "older than the store"}},
		{"store and journal older than the identity", from(s.old, storeFile, cacheFile),
			[]string{"older than the file \"identity\""}},
		{"store and identity older than the journal", from(s.old, storeFile, identityFile),
			[]string{"older than its journal"}},
		{"journal and identity older than the store", from(s.old, cacheFile, identityFile),
			[]string{"older than the store"}},
		{"journal cut off", func(t *testing.T, dir string) {
			os.Truncate(filepath.Join(dir, cacheFile), 1<<20)
		}, []string{"cut off"}},
		{"store cut off", func(t *testing.T, dir string) {
			os.Truncate(filepath.Join(dir, storeFile), 70<<20)
		}, []string{"cut off"}},
		{"identity damaged", func(t *testing.T, dir string) {
			os.WriteFile(filepath.Join(dir, identityFile), []byte("{}\ncrc32c 00000000\n"), 0o600)
		}, []string{"identity", "damaged"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cs")
			copyDir(t, dir, s.dir)
			c.do(t, dir)
			before := hashes(t, dir)
			err := runOnce(dir, m)
			if k := dataplane.KindOf(err); k != dataplane.Invalid {
				t.Fatalf("kind %v: %v", k, err)
			}
			if hashes(t, dir) != before {
				t.Errorf("a refused start changed the files: %v", err)
			}
			for _, text := range append(c.says, dir, "back") {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("the message doesn't say %q: %v", text, err)
				}
			}
			t.Log(err)
		})
	}
	// The whole directory from before fits together: the metadata servers know better, and however
	// often it is started, it isn't served.
	m.mu.Lock()
	recorded, older := m.boots[1], filepath.Join(base, "older")
	copyDir(t, older, s.old)
	m.mu.Unlock()
	for range recorded + 2 {
		err := runOnce(s.old, m)
		if dataplane.KindOf(err) != dataplane.Conflict || !strings.Contains(err.Error(), s.old) {
			t.Fatalf("a whole directory that was rolled back: %v", err)
		}
	}
	// Nor after starts that reached none of them, so that its counter is above theirs.
	copyDir(t, s.old, older)
	for range recorded + 2 {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		err := Run(ctx, Options{Dir: s.old, Cred: realCred(dataplane.RoleCS, 0),
			ListenAddr: "127.0.0.1", MDS: func() []string { return []string{"127.0.0.1:1"} }})
		if cancel(); err != nil {
			t.Fatalf("a start without metadata servers: %v", err)
		}
	}
	id, err := ReadIdentity(s.old)
	if err != nil || id.Boot <= recorded {
		t.Fatalf("start %d, recorded is %d: %v", id.Boot, recorded, err)
	}
	if err := runOnce(s.old, m); dataplane.KindOf(err) != dataplane.Conflict {
		t.Fatalf("a directory that was rolled back, and started %d times since: %v", recorded+2, err)
	}
	copyDir(t, s.old, s.dir) // the right one
	s.use(s.old, m, chunkA, 1)
	copyDir(t, s.dir, s.old)
	// And the right one still serves.
	s.use(s.dir, m, chunkA, 1)
}

// runOnce runs a server that should refuse.
func runOnce(dir string, m *tableMDS) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return Run(ctx, Options{Dir: dir, Cred: realCred(dataplane.RoleCS, 0), ListenAddr: "127.0.0.1",
		MDS: func() []string { return []string{m.addr} }})
}

// Any number of starts that reach no metadata server fit in the identity, and the start that was
// recorded last stays in it.
func TestStartsFitIdentity(t *testing.T) {
	id := &Identity{Version: identityVersion, Cluster: dataplane.ClusterID{1}.String(),
		Disk: uuid{2}.String(), Log: uuid{3}.String(), Capacity: 1 << 30}
	for range 2 * control.MaxStarts {
		id.Starts = addStart(id.Starts, func() uint64 { return 1<<64 - 1 - uint64(len(id.Starts)) })
		got, err := decodeIdentity(id.encode())
		if err != nil || got.Starts[0] != 1<<64-1 || !slices.Equal(got.Starts, id.Starts) {
			t.Fatalf("after %d starts: %v", len(id.Starts), err)
		}
	}
	for _, wrong := range [][]uint64{{1, 0}, make([]uint64, control.MaxStarts+1)} {
		id.Starts = wrong
		if _, err := decodeIdentity(id.encode()); err == nil {
			t.Errorf("%d starts, with 0 among them, are read", len(wrong))
		}
	}
}
