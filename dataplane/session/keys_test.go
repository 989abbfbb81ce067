package session

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"pstorage/dataplane"
)

// memoryFile is a KeyFile without a file. Processes that share a node share it.
type memoryFile struct {
	keys  *KeySet
	err   error // of reading it
	full  error // of writing it
	busy  error // of locking it
	saved int
}

func (f *memoryFile) Load() (*KeySet, error) { return f.keys, f.err }

func (f *memoryFile) Save(k *KeySet) error {
	if f.full == nil {
		f.keys = k
		f.saved++
	}
	return f.full
}

func (f *memoryFile) Locked(g func() error) error {
	if f.busy != nil {
		return f.busy
	}
	return g()
}

// granted is what auth-node stores: a certificate, and nothing about which nodes are revoked.
func (a *authority) granted(roles uint8) *KeySet {
	k := a.node(roles)
	k.Version, k.Revoked = 0, nil
	return k
}

func (a *authority) renew(t *testing.T, r *Ring) error {
	return r.Update(&a.set, func(public [32]byte) ([]byte, error) {
		c := r.Load().Certificate()
		return a.certify(public, c.Node, c.Roles), nil
	})
}

// A node that a person had authenticated again proves itself with the new key, also in processes
// that run already, and they don't put the old key into its place.
func TestRingTakesPersonsKey(t *testing.T) {
	au := newAuthority()
	client := RoleBit(dataplane.RoleClient)
	file := &memoryFile{keys: au.granted(client)}
	r := NewRing(file.keys, file)
	if err := au.renew(t, r); err != nil || r.Load().Version != au.set.Version {
		t.Fatal(err)
	}

	file.keys = au.granted(AllRoles)
	au.set.Revoked = []uint64{1}
	au.set.Version++
	if err := au.renew(t, r); err != nil {
		t.Fatal(err)
	}
	now := r.Load()
	if c := now.Certificate(); c.Node != 2 || c.Roles != AllRoles || len(now.Revoked) != 1 {
		t.Errorf("updated: %+v, revoked %v", c, now.Revoked)
	}
	if c, err := parseCert(file.keys.Cert); err != nil || c.Node != 2 {
		t.Errorf("the file was replaced by the old key: %+v, %v", c, err)
	}

	// Revoked, so it isn't told anything any more, and then authenticated again.
	file.keys = au.granted(client)
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	now = r.Load()
	if now.Certificate().Node != 3 || len(now.Revoked) != 1 || now.Check(au.cluster) != nil {
		t.Errorf("reloaded: node %d, revoked %v", now.Certificate().Node, now.Revoked)
	}

	// The same after it has missed a rotation: what it knew of the cluster is worth nothing.
	au.add()
	au.set.Current, au.set.Generations = 2, au.set.Generations[1:]
	file.keys = au.granted(client)
	if err := r.Reload(); err != nil || r.Load().own() == nil || r.Load().own().Number != 2 {
		t.Errorf("after a missed rotation: %v, %+v", err, r.Load().Generations)
	}

	// A copy of an older key is no news.
	old := *file.keys
	old.Cert = bytes.Clone(old.Cert)
	old.Cert[8] = 1
	file.keys = &old
	if err := r.Reload(); err != nil || certGeneration(r.Load().Cert) != 2 {
		t.Errorf("an older key was taken: %v", err)
	}
}

// A revocation counts also in a process whose key file was removed; the file stays as it is.
func TestRingWithoutFile(t *testing.T) {
	au := newAuthority()
	file := &memoryFile{keys: au.node(AllRoles)}
	r := NewRing(file.keys, file)
	file.err = errors.New("gone")
	au.set.Revoked = []uint64{7}
	au.set.Version++
	err := au.renew(t, r)
	if !errors.Is(err, file.err) || len(r.Load().Revoked) != 1 || file.saved != 0 {
		t.Errorf("%v, revoked %v, written %d times", err, r.Load().Revoked, file.saved)
	}
}

// A revocation counts also if the file can't be locked or written; it is written when that works
// again, though nothing is newer then.
func TestRingUnsaved(t *testing.T) {
	for name, what := range map[string]func(f *memoryFile, err error){
		"locked":  func(f *memoryFile, err error) { f.busy = err },
		"read":    func(f *memoryFile, err error) { f.err = err },
		"written": func(f *memoryFile, err error) { f.full = err },
	} {
		au := newAuthority()
		file := &memoryFile{keys: au.node(AllRoles)}
		r := NewRing(file.keys, file)
		au.set.Revoked = []uint64{7}
		au.set.Version++
		broken := errors.New("no")
		what(file, broken)
		for range 2 {
			if err := au.renew(t, r); !errors.Is(err, broken) || len(r.Load().Revoked) != 1 ||
				!r.Unsaved() {
				t.Errorf("can't be %s: %v, revoked %v", name, err, r.Load().Revoked)
			}
		}
		what(file, nil)
		if err := au.renew(t, r); err != nil || r.Unsaved() || len(file.keys.Revoked) != 1 {
			t.Errorf("was not %s: %v, the file has %+v", name, err, file.keys)
		}
	}
}

// Attempts that are made at the same moment don't pass together.
func TestTakeAtOnce(t *testing.T) {
	for range 20 {
		f := NewPasswordFailures(func() int64 { runtime.Gosched(); return 1 }) // others come in between
		var taken atomic.Int32
		var all sync.WaitGroup
		begin := make(chan struct{})
		for range 50 * passBurst {
			all.Go(func() {
				<-begin
				if f.Take("10.0.0.1:1") {
					taken.Add(1)
				}
			})
		}
		close(begin)
		all.Wait()
		if taken.Load() != passBurst {
			t.Fatalf("%d attempts passed, %d are allowed", taken.Load(), passBurst)
		}
	}
}
