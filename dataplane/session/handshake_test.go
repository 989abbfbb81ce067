package session

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"pstorage/dataplane"
)

func testCred(role dataplane.Role, id uint64) *Credentials {
	c := &Credentials{ClusterName: "test", Role: role, ID: id, Name: "host-" + role.String(),
		Features: 0b0110 | uint32(role)<<8}
	copy(c.Cluster[:], "cluster-id-01234")
	copy(c.Key[:], "a key that only the cluster has.")
	return c
}

func nonceOf(b byte) (n [32]byte) {
	for i := range n {
		n[i] = b
	}
	return n
}

// turn is what one end sent, in the order of the handshake.
type turn struct {
	fromDialer bool
	bytes      []byte
}

// play runs a handshake to its end. Input reaches each end in pieces of chop bytes; meddle may
// replace message i. It returns what was sent and the first error of each end.
func play(t testing.TB, d, a *Handshake, chop int, meddle func(i int, m []byte) []byte) (
	turns []turn, derr, aerr error) {
	t.Helper()
	_, out, _, _ := d.Step(nil)
	toAcceptor := true
	ddone := false
	for len(out) > 0 {
		if meddle != nil {
			out = meddle(len(turns), bytes.Clone(out))
		}
		turns = append(turns, turn{toAcceptor, out})
		end := d
		if toAcceptor {
			end = a
		}
		in, have := out, 0
		out = nil
		for have < len(in) && len(out) == 0 {
			have = min(have+chop, len(in))
			n, o, done, err := end.Step(in[:have])
			if n > have || n > MaxMessage || err == nil && n != 0 && n != len(in) {
				t.Fatalf("consumed %d of %d", n, have)
			}
			out = o
			if toAcceptor {
				aerr = err
			} else {
				ddone, derr = ddone || done, err
			}
			if err != nil || done {
				break
			}
		}
		if derr != nil || ddone {
			break
		}
		toAcceptor = !toAcceptor
	}
	return turns, derr, aerr
}

func TestHandshake(t *testing.T) {
	for chop := 1; chop <= MaxMessage; chop = chop*3 + 1 {
		d := NewDialer(testCred(dataplane.RoleClient, 77), ServiceRPC, nonceOf(1))
		a := NewAcceptor(testCred(dataplane.RoleCS, 5), nonceOf(2))
		turns, derr, aerr := play(t, d, a, chop, nil)
		if derr != nil || aerr != nil || len(turns) != 4 ||
			d.state != hsDone || a.state != hsDone {
			t.Fatalf("chop %d: %v, %v after %d messages", chop, derr, aerr, len(turns))
		}
		features := 0b0110 | FeatureTag
		want := Peer{Role: dataplane.RoleCS, ID: 5, Name: "host-cs", Service: ServiceRPC,
			Features: features}
		if d.Peer() != want {
			t.Errorf("dialer sees %+v, want %+v", d.Peer(), want)
		}
		want = Peer{Role: dataplane.RoleClient, ID: 77, Name: "host-client", Service: ServiceRPC,
			Features: features}
		if a.Peer() != want {
			t.Errorf("acceptor sees %+v, want %+v", a.Peer(), want)
		}
		if d.SessionKey() != a.SessionKey() || d.SessionKey() == [32]byte{} {
			t.Errorf("session keys %x and %x", d.SessionKey(), a.SessionKey())
		}
	}
}

// The bytes on the wire are a promise to other versions.
func TestHandshakeGolden(t *testing.T) {
	d := NewDialer(testCred(dataplane.RoleMDS, 1), ServiceRaft, nonceOf(1))
	a := NewAcceptor(testCred(dataplane.RoleMDS, 2), nonceOf(2))
	// As a version without these features spoke, and still must be spoken to.
	d.offer, a.offer = d.cred.Features, a.cred.Features
	turns, derr, aerr := play(t, d, a, MaxMessage, nil)
	if derr != nil || aerr != nil {
		t.Fatal(derr, aerr)
	}
	h := sha256.New()
	var sizes []int
	for _, m := range turns {
		sizes = append(sizes, len(m.bytes))
		h.Write(m.bytes)
	}
	if got, want := fmt.Sprint(sizes), "[72 48 60 60]"; got != want {
		t.Errorf("sizes %v, want %v", got, want)
	}
	if got := hex.EncodeToString(h.Sum(nil)[:8]); got != goldenTranscript {
		t.Errorf("the handshake's bytes have changed: %s", got)
	}
	key := d.SessionKey()
	if got := hex.EncodeToString(key[:8]); got != goldenSession {
		t.Errorf("the session key has changed: %s", got)
	}
}

const (
	goldenTranscript = "c37ed6c98dbcca38"
	goldenSession    = "b77089f0c54f6570"
)

func TestHandshakeRefusals(t *testing.T) {
	for _, c := range []struct {
		name    string
		service uint8
		change  func(d, a *Credentials)
		kind    dataplane.Kind // at both ends
		text    string         // at the dialer
	}{
		{"wrong key", ServiceRPC, func(d, a *Credentials) { d.Key[0]++ },
			dataplane.Denied, "refused this node's key"},
		{"wrong cluster", ServiceRPC, func(d, a *Credentials) { d.Cluster[3]++ },
			dataplane.WrongCluster, "another cluster"},
		{"wrong cluster and key", ServiceRPC, func(d, a *Credentials) { d.Cluster[3]++; d.Key[0]++ },
			dataplane.WrongCluster, "another cluster"},
		{"no role", ServiceRPC, func(d, a *Credentials) { d.Role = dataplane.RoleNone },
			dataplane.Denied, ""},
		{"unknown role", ServiceRPC, func(d, a *Credentials) { d.Role = 99 }, dataplane.Denied, ""},
		{"unknown service", 9, func(d, a *Credentials) {}, dataplane.Denied, ""},
		{"no service", 0, func(d, a *Credentials) { a.Role = dataplane.RoleMDS }, dataplane.Denied, ""},
		{"behind the last service", ServiceRelay + 1,
			func(d, a *Credentials) { a.Role = dataplane.RoleMDS }, dataplane.Denied, ""},
		{"relay at a CS", ServiceRelay, func(d, a *Credentials) {}, dataplane.Denied, ""},
		{"raft by a client", ServiceRaft, func(d, a *Credentials) { a.Role = dataplane.RoleMDS },
			dataplane.Denied, ""},
		{"raft at a CS", ServiceRaft, func(d, a *Credentials) { d.Role = dataplane.RoleMDS },
			dataplane.Denied, ""},
	} {
		dc, ac := testCred(dataplane.RoleClient, 1), testCred(dataplane.RoleCS, 2)
		c.change(dc, ac)
		d, a := NewDialer(dc, c.service, nonceOf(1)), NewAcceptor(ac, nonceOf(2))
		turns, derr, aerr := play(t, d, a, MaxMessage, nil)
		if dataplane.KindOf(derr) != c.kind || dataplane.KindOf(aerr) != c.kind {
			t.Errorf("%s: dialer %v, acceptor %v, want %v", c.name, derr, aerr, c.kind)
			continue
		}
		if !strings.Contains(derr.Error(), c.text) {
			t.Errorf("%s: dialer's error is %q", c.name, derr)
		}
		if last := turns[len(turns)-1].bytes; len(last) != refuseSize {
			t.Errorf("%s: a stranger was told %d bytes", c.name, len(last))
		}
	}
}

func TestHandshakeKeyReplaced(t *testing.T) {
	dc, ac := testCred(dataplane.RoleClient, 1), testCred(dataplane.RoleCS, 2)
	dc.Key[5]++
	ac.Ring = NewRing(&KeySet{Generations: []Generation{{Key: Secret{1}}, {Key: ac.Key},
		{Key: dc.Key}}}, nil)
	_, derr, aerr := play(t, NewDialer(dc, ServiceRPC, nonceOf(1)), NewAcceptor(ac, nonceOf(2)),
		MaxMessage, nil)
	if derr != nil || aerr != nil {
		t.Fatal(derr, aerr)
	}
}

// Each bit of each message counts: a change of any byte is noticed by one of the ends.
func TestHandshakeEveryByte(t *testing.T) {
	for i, size := range []int{helloSize, chalSize, proofFixed + 11 + macSize,
		proofFixed + 7 + macSize} {
		for at := range size {
			d := NewDialer(testCred(dataplane.RoleClient, 1), ServiceRPC, nonceOf(1))
			a := NewAcceptor(testCred(dataplane.RoleCS, 2), nonceOf(2))
			meddled := false
			_, derr, aerr := play(t, d, a, MaxMessage, func(n int, m []byte) []byte {
				if n == i {
					if len(m) != size {
						t.Fatalf("message %d has %d bytes, not %d", n, len(m), size)
					}
					m[at] ^= 1
					meddled = true
				}
				return m
			})
			// A length that grew makes the end wait for more: the deadline's business.
			if meddled && derr == nil && aerr == nil && d.state == hsDone && a.state == hsDone {
				t.Errorf("byte %d of message %d doesn't matter", at, i)
			}
		}
	}
}

// A recorded handshake is refused: the acceptor's nonce is new.
func TestHandshakeReplay(t *testing.T) {
	d := NewDialer(testCred(dataplane.RoleClient, 1), ServiceRPC, nonceOf(1))
	turns, _, aerr := play(t, d, NewAcceptor(testCred(dataplane.RoleCS, 2), nonceOf(2)), 512, nil)
	if aerr != nil {
		t.Fatal(aerr)
	}
	a := NewAcceptor(testCred(dataplane.RoleCS, 2), nonceOf(3))
	if _, out, _, err := a.Step(turns[0].bytes); err != nil || len(out) != chalSize {
		t.Fatal(err)
	}
	if _, out, done, err := a.Step(turns[2].bytes); dataplane.KindOf(err) != dataplane.Denied ||
		done || len(out) != refuseSize {
		t.Fatalf("replayed proof: done %v, %v", done, err)
	}
}

// Sending an end its own messages back proves nothing.
func TestHandshakeReflection(t *testing.T) {
	d := NewDialer(testCred(dataplane.RoleCS, 1), ServiceRPC, nonceOf(1))
	_, hello, _, _ := d.Step(nil)
	chal := message(keyMagic, msgChallenge, 1, chalSize)
	copy(chal[16:], hello[40:])
	_, proof, _, err := d.Step(chal)
	if err != nil {
		t.Fatal(err)
	}
	proof = bytes.Clone(proof)
	proof[4] = msgWelcome
	if _, _, done, err := d.Step(proof); dataplane.KindOf(err) != dataplane.Denied || done {
		t.Fatalf("reflected proof: done %v, %v", done, err)
	}
}

func TestHandshakeOutOfTurn(t *testing.T) {
	for typ := range byte(20) {
		a := NewAcceptor(testCred(dataplane.RoleCS, 2), nonceOf(2))
		m := message(keyMagic, typ, 1, helloSize)
		if _, out, done, err := a.Step(m); err == nil || done || len(out) > refuseSize {
			t.Errorf("type %d: %v", typ, err)
		}
	}
	for _, in := range []string{"G", "GET / HTTP/1.1\r\n", "PSHX", "PSHK\x01\x01\xff\xff"} {
		a := NewAcceptor(testCred(dataplane.RoleCS, 2), nonceOf(2))
		if _, out, _, err := a.Step([]byte(in)); len(out) != 0 ||
			dataplane.KindOf(err) != dataplane.Malformed {
			t.Errorf("%q: %v, answer %q", in, err, out)
		}
	}
}

func fuzzStep(t *testing.T, k *Handshake, in []byte) {
	for rounds := 0; ; rounds++ {
		before := bytes.Clone(in)
		n, out, done, err := k.Step(in)
		if !bytes.Equal(before, in) {
			t.Fatal("input was changed")
		}
		if n > len(in) || n > MaxMessage || len(out) > MaxMessage || rounds > 8 {
			t.Fatalf("consumed %d, answered %d bytes, round %d", n, len(out), rounds)
		}
		if done {
			t.Fatal("a stranger got in")
		}
		if err != nil || n == 0 {
			return
		}
		in = in[n:]
	}
}

func FuzzAcceptor(f *testing.F) {
	d := NewDialer(testCred(dataplane.RoleClient, 1), ServiceRPC, nonceOf(1))
	turns, _, _ := play(f, d, NewAcceptor(testCred(dataplane.RoleCS, 2), nonceOf(2)), 512, nil)
	f.Add(append(bytes.Clone(turns[0].bytes), turns[2].bytes...))
	f.Fuzz(func(t *testing.T, in []byte) {
		fuzzStep(t, NewAcceptor(testCred(dataplane.RoleCS, 2), nonceOf(9)), in)
	})
}

func FuzzDialer(f *testing.F) {
	d := NewDialer(testCred(dataplane.RoleClient, 1), ServiceRPC, nonceOf(1))
	turns, _, _ := play(f, d, NewAcceptor(testCred(dataplane.RoleCS, 2), nonceOf(2)), 512, nil)
	f.Add(append(bytes.Clone(turns[1].bytes), turns[3].bytes...))
	f.Add(refusal(keyMagic, dataplane.WrongCluster))
	f.Fuzz(func(t *testing.T, in []byte) {
		k := NewDialer(testCred(dataplane.RoleClient, 1), ServiceRPC, nonceOf(9))
		k.Step(nil)
		fuzzStep(t, k, in)
	})
}
