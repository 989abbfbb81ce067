package session

import (
	"bytes"
	"errors"
	"hash"
	"io"
	"testing"

	"pstorage/dataplane"
)

// fixedSet is a cluster's only generation and the keys of a node in it, the same in each run.
func fixedSet(node uint64) *KeySet {
	sign, private := Secret{1}, Secret{2, byte(node)}
	cluster := testCred(dataplane.RoleCS, 1).Cluster
	return &KeySet{Version: 1, Current: 1, Private: private,
		Generations: []Generation{{Number: 1, Key: Secret{3}, Sign: PublicKey(&sign)}},
		Cert: SignCertificate(&Certificate{Roles: AllRoles, Generation: 1, Cluster: cluster,
			Node: node, Public: PublicKey(&private)}, &sign)}
}

// FuzzCertificate: no certificate is taken but the one that was signed, and what can be decoded is
// what was encoded.
func FuzzCertificate(f *testing.F) {
	k := fixedSet(7)
	cluster := testCred(dataplane.RoleCS, 1).Cluster
	f.Add(k.Cert)
	f.Add(k.Cert[:certSigned])
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := k.checkCert(b, cluster); err == nil && !bytes.Equal(b, k.Cert) {
			t.Fatalf("a forged certificate: %+v", c)
		}
		c, err := parseCert(b)
		if err != nil {
			return
		}
		again := SignCertificate(c, &Secret{1})
		if !bytes.Equal(again[:certSigned], b[:certSigned]) {
			t.Fatalf("%x became %x", b, again)
		}
		own := KeySet{Generations: k.Generations, Private: k.Private, Cert: b}
		if own.Check(cluster) == nil && c.Public != PublicKey(&k.Private) {
			t.Fatal("the certificate of another key")
		}
	})
}

// FuzzHandshake2 plays a node that has the cluster's key and no certificate, so everything behind
// the MAC is reached: whatever it writes into its proof, or as a server into its welcome, it
// doesn't get in.
func FuzzHandshake2(f *testing.F) {
	cred := func(role dataplane.Role, node uint64) *Credentials {
		return certCred(role, node, fixedSet(node))
	}
	d := NewDialer(cred(dataplane.RoleClient, 1), ServiceRPC, nonceOf(1))
	a := NewAcceptor(cred(dataplane.RoleCS, 2), nonceOf(2))
	turns, derr, aerr := play(f, d, a, MaxMessage, nil)
	if derr != nil || aerr != nil || len(turns) != 4 {
		f.Fatal(derr, aerr)
	}
	f.Add(turns[2].bytes, false)
	f.Add(turns[3].bytes, true)
	f.Fuzz(func(t *testing.T, identity []byte, welcome bool) {
		if len(identity) < headSize+macSize || len(identity) > MaxMessage {
			return
		}
		d := NewDialer(cred(dataplane.RoleClient, 1), ServiceRPC, nonceOf(3))
		a := NewAcceptor(cred(dataplane.RoleCS, 2), nonceOf(4))
		victim, direction, last := a, "dialer", 2
		if welcome {
			victim, direction, last = d, "acceptor", 3
		}
		_, derr, aerr := play(t, d, a, MaxMessage, func(n int, m []byte) []byte {
			if n != last {
				return m
			}
			m = bytes.Clone(identity)
			at := len(m) - macSize
			script, err := victim.script.(hash.Cloner).Clone()
			if err != nil {
				t.Fatal(err)
			}
			script.Write(m[:at])
			forger := Handshake{prk: victim.prk, version: victim.version, script: script}
			copy(m[at:], forger.mac(direction))
			return m
		})
		if derr == nil && aerr == nil && victim.state == hsDone {
			t.Fatal("a node without a certificate got in")
		}
	})
}

// FuzzRecords feeds a stranger's bytes where records are expected: nothing of them is delivered,
// in a stream or in frames.
func FuzzRecords(f *testing.F) {
	session := [32]byte{1}
	other, _ := directions(&[32]byte{2}, true)
	rec := make([]byte, recordHead+dataplane.HeaderSize+gcmTag)
	other.seal(rec, make([]byte, dataplane.HeaderSize))
	f.Add(rec)
	f.Add([]byte{0, 0, 0, 0, 1})
	f.Add([]byte{0, 0, 1, 0})
	f.Add([]byte{1, 0, 1, 0, 9})
	f.Fuzz(func(t *testing.T, in []byte) {
		_, receive := directions(&session, true)
		got, err := io.ReadAll(newOpenStream(receive, bytes.NewReader(in)))
		if len(got) > 0 || err == nil && len(in) > 0 {
			t.Fatalf("%d bytes came out of a stranger's: %v", len(got), err)
		}
		var frame *dataplane.FrameError
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &frame) {
			t.Fatal(err)
		}
		p := openedAs(t, 1<<20, encrypted)
		p.ac.feed(bytes.Clone(in))
		if len(p.ah.frames) > 0 {
			t.Fatal("a stranger's frame was delivered")
		}
	})
}
