package session

import (
	"testing"

	"pstorage/dataplane"
)

// TestOthersOfAnAddress: who tries a wrong key again and again keeps nobody else of its address
// out, be it one that has the right key or one that has the password. Who has the right key and
// still is refused again and again does.
func TestOthersOfAnAddress(t *testing.T) {
	still := func() int64 { return 1 } // no attempt is forgiven
	l := startLoop(t)
	gate := NewGate(l)
	gate.fails = NewFailures(still)
	mds := listen(t, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1), Auth: passwordAuth(t),
		Fails: NewFailures(still)}, echo)

	wrong, strange := testCred(dataplane.RoleClient, 8), testCred(dataplane.RoleSupervisor+1, 8)
	wrong.Key[0]++
	for name, addr := range map[string]string{"loop": gateServer(t, l, gate), "mds": mds} {
		try := func(c *Credentials) dataplane.Kind {
			nc, err := Client(t.Context(), dial(t, addr), c, ServiceRPC)
			if err == nil {
				nc.Close()
			}
			return dataplane.KindOf(err)
		}
		answered := func(c *Credentials) (n int) {
			for range 4 * failBurst {
				if try(c) == dataplane.Denied {
					n++
				}
			}
			return n
		}
		right := testCred(dataplane.RoleClient, 7)
		if n := answered(wrong); n < failBurst || n > 2*failBurst {
			t.Errorf("%s: %d answers to a wrong key", name, n)
		}
		if k := try(right); k != dataplane.OK {
			t.Errorf("%s: the right key, from where a wrong one was tried: %v", name, k)
		}
		if n := answered(strange); n < failBurst || n > 2*failBurst {
			t.Errorf("%s: %d answers to an unknown role", name, n)
		}
		if k := try(right); k == dataplane.OK {
			t.Errorf("%s: an address whose proofs fail isn't refused", name)
		}
	}
	if _, err := AuthNode(t.Context(), dial(t, mds), "test", password, "host", AllRoles); err != nil {
		t.Errorf("the password, from where a wrong key was tried: %v", err)
	}
}
