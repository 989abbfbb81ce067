package session

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
)

// authority is a cluster with certificates, as a metadata server is.
type authority struct {
	cluster  dataplane.ClusterID
	set      KeySet
	privates []Secret // of set.Generations
	nodes    uint64
}

func newAuthority() *authority {
	a := &authority{cluster: testCred(dataplane.RoleMDS, 1).Cluster}
	a.add()
	a.set.Current = 1
	return a
}

// add makes the next generation.
func (a *authority) add() {
	private := NewSecret()
	a.privates = append(a.privates, private)
	a.set.Generations = append(slices.Clone(a.set.Generations), Generation{
		Number: uint32(len(a.privates)), Key: NewSecret(), Sign: PublicKey(&private)})
	a.set.Version++
}

// node makes a node with a certificate of the current generation.
func (a *authority) node(roles uint8) *KeySet {
	k := a.set
	k.Private = NewSecret()
	a.nodes++
	k.Cert = a.certify(PublicKey(&k.Private), a.nodes, roles)
	return &k
}

func (a *authority) certify(public [32]byte, node uint64, roles uint8) []byte {
	return SignCertificate(&Certificate{Roles: roles, Generation: a.set.Current, Cluster: a.cluster,
		Node: node, Public: public}, &a.privates[a.set.Current-1])
}

func certCred(role dataplane.Role, id uint64, k *KeySet) *Credentials {
	c := testCred(role, id)
	c.Key = [32]byte{}
	c.Ring = NewRing(k, nil)
	return c
}

func shake(t testing.TB, dc, ac *Credentials, meddle func(int, []byte) []byte) (d, a *Handshake,
	derr, aerr error) {
	t.Helper()
	d, a = NewDialer(dc, ServiceRPC, nonceOf(1)), NewAcceptor(ac, nonceOf(2))
	_, derr, aerr = play(t, d, a, MaxMessage, meddle)
	return d, a, derr, aerr
}

func TestCertificates(t *testing.T) {
	au := newAuthority()
	client := au.node(RoleBit(dataplane.RoleClient))
	server := au.node(RoleBit(dataplane.RoleCS))
	d, a, derr, aerr := shake(t, certCred(dataplane.RoleClient, 7, client),
		certCred(dataplane.RoleCS, 2, server), nil)
	if derr != nil || aerr != nil {
		t.Fatal(derr, aerr)
	}
	if a.Peer().Node != 1 || d.Peer().Node != 2 || d.Peer().Generation != 1 ||
		d.SessionKey() != a.SessionKey() {
		t.Fatalf("%+v, %+v", d.Peer(), a.Peer())
	}
	other := newAuthority()
	stranger := other.node(AllRoles)
	stranger.Generations = client.Generations // knows the cluster's key, not more
	forged := *client
	forged.Cert = bytes.Clone(client.Cert)
	forged.Cert[5] = AllRoles
	stolen := *client
	stolen.Cert = server.Cert // seen on the wire of an own connection
	revoked := *server
	revoked.Revoked = []uint64{1}
	old := LegacyKeys([32]byte(server.Generations[0].Key))
	for name, c := range map[string]struct {
		role     dataplane.Role
		dialer   *KeySet
		acceptor *KeySet
		text     string // at the acceptor
	}{
		"a client as a chunk server": {dataplane.RoleCS, client, server, "isn't good for that role"},
		"a client as an MDS":         {dataplane.RoleMDS, client, server, "isn't good for that role"},
		"a client as an admin":       {dataplane.RoleAdmin, client, server, "isn't good for that role"},
		"certificate of another":     {dataplane.RoleCS, stranger, server, "didn't sign"},
		"roles changed":              {dataplane.RoleMDS, &forged, server, "didn't sign"},
		"another one's certificate":  {dataplane.RoleCS, &stolen, server, "isn't its own"},
		"revoked":                    {dataplane.RoleClient, client, &revoked, "revoked"},
		"the cluster's key, no cert": {dataplane.RoleCS, &old, server, "versions 1 to 1"},
	} {
		_, _, derr, aerr := shake(t, certCred(c.role, 7, c.dialer),
			certCred(dataplane.RoleCS, 2, c.acceptor), nil)
		if aerr == nil || derr == nil || !strings.Contains(aerr.Error(), c.text) {
			t.Errorf("%s: acceptor %v, dialer %v", name, aerr, derr)
		}
	}
	// The other way round: who answers needs the role, too.
	_, _, derr, aerr = shake(t, certCred(dataplane.RoleCS, 7, server),
		certCred(dataplane.RoleMDS, 2, client), nil)
	if derr == nil || !strings.Contains(derr.Error(), "isn't good for that role") {
		t.Errorf("a client as the acceptor: %v, %v", derr, aerr)
	}
}

// A change of any byte of a handshake with certificates is noticed.
func TestCertificateEveryByte(t *testing.T) {
	au := newAuthority()
	dc := certCred(dataplane.RoleClient, 1, au.node(AllRoles))
	ac := certCred(dataplane.RoleCS, 2, au.node(AllRoles))
	step := 1
	if testing.Short() {
		step = 7
	}
	for i := range 4 {
		for at, size := 0, 1; at < size; at += step {
			d, a, derr, aerr := shake(t, dc, ac, func(n int, m []byte) []byte {
				if n == i {
					size = len(m)
					m[at] ^= 1
				}
				return m
			})
			if derr == nil && aerr == nil && d.state == hsDone && a.state == hsDone {
				t.Errorf("byte %d of message %d doesn't matter", at, i)
			}
		}
	}
}

// Both ends insist on encryption when the cluster's mode is secure, whatever the other one is able
// to, and whatever somebody in the middle takes out of the messages.
func TestDowngrade(t *testing.T) {
	au := newAuthority()
	secure := au.node(AllRoles)
	secure.Secure = true
	crc := au.node(AllRoles)
	older := func(k *Handshake) { k.offer = k.cred.Features }
	none := func(*Handshake) {}
	for _, c := range []struct {
		dialer, acceptor *KeySet
		changeD, changeA func(*Handshake)
		secure, refused  bool
	}{
		{secure, secure, none, none, true, false},
		{crc, secure, none, none, true, false}, // while the mode is being changed
		{secure, crc, none, none, true, false},
		{crc, crc, none, none, false, false},
		{secure, crc, none, older, false, true},
		{crc, secure, older, none, false, true},
		{crc, crc, older, none, false, false},
	} {
		d := NewDialer(certCred(dataplane.RoleClient, 1, c.dialer), ServiceRPC, nonceOf(1))
		a := NewAcceptor(certCred(dataplane.RoleCS, 2, c.acceptor), nonceOf(2))
		c.changeD(d)
		c.changeA(a)
		_, derr, aerr := play(t, d, a, MaxMessage, nil)
		if refused := derr != nil || aerr != nil; refused != c.refused ||
			!refused && (d.Peer().Secure != c.secure || a.Peer().Secure != c.secure) {
			t.Errorf("%+v: %v, %v, encrypted %v", c, derr, aerr, d.Peer().Secure)
		}
	}
	for _, message := range []int{0, 1} {
		_, _, derr, aerr := shake(t, certCred(dataplane.RoleClient, 1, crc),
			certCred(dataplane.RoleCS, 2, crc), func(n int, m []byte) []byte {
				if n == message {
					clear(m[8:12]) // no features at all
				}
				return m
			})
		if derr == nil && aerr == nil {
			t.Errorf("features taken out of message %d weren't missed", message)
		}
	}
}

// What goes over a protected connection can't be changed, repeated, left out, moved or cut.
func TestWireAttacks(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	frames := []got{makeFrame(rng, dataplane.OpRead, 4096, 0),
		makeFrame(rng, dataplane.OpWrite, 0, 4096), makeFrame(rng, dataplane.OpWrite, 0, 20000)}
	for protection := withTags; protection < protections; protection++ {
		// attack sends the frames; wire has what each of them is on the wire.
		attack := func(name string, attacked func(wire [][]byte) []byte) {
			p := openedAs(t, 4<<20, protection)
			var wire [][]byte
			for _, g := range frames {
				p.d.Send(&g.h, g.crcs, g.payload)
				wire = append(wire, p.dc.out)
				p.dc.out = nil
			}
			p.ac.feed(attacked(wire))
			p.ac.end(io.EOF)
			for i, g := range p.ah.frames {
				if i >= len(frames) || !same([]got{g}, frames[i:i+1]) {
					t.Errorf("protection %d, %s: frame %d was taken: %v", protection, name, i, &g.h)
				}
			}
			if p.ah.err == io.EOF {
				t.Errorf("protection %d, %s: nobody noticed", protection, name)
			}
		}
		for at := range dataplane.HeaderSize + recordHead + gcmTag {
			attack("a bit of a header", func(w [][]byte) []byte {
				all := bytes.Join(w, nil)
				all[at] ^= 1 << (at % 8)
				return all
			})
		}
		attack("repeated", func(w [][]byte) []byte {
			return bytes.Join([][]byte{w[0], w[0], w[1]}, nil)
		})
		attack("left out", func(w [][]byte) []byte { return bytes.Join([][]byte{w[0], w[2]}, nil) })
		attack("moved", func(w [][]byte) []byte { return bytes.Join([][]byte{w[1], w[0]}, nil) })
		attack("cut", func(w [][]byte) []byte {
			all := bytes.Join(w, nil)
			return all[:len(all)-1]
		})
		if protection != encrypted {
			continue
		}
		attack("a bit of a small payload", func(w [][]byte) []byte {
			w[1][len(w[1])/2] ^= 4
			return bytes.Join(w, nil)
		})
		attack("a bit of a large payload", func(w [][]byte) []byte {
			w[2][len(w[2])-20] ^= 4
			return bytes.Join(w, nil)
		})
		attack("an oversize record", func(w [][]byte) []byte { return []byte{0xff, 0xff, 0xff, 0x7f} })
	}
}

// Nothing of a payload can be read on the way, and the same frame twice looks different.
func TestEncrypted(t *testing.T) {
	p := openedAs(t, 4<<20, encrypted)
	g := makeFrame(rand.New(rand.NewPCG(1, 1)), dataplane.OpWrite, 0, 4096)
	p.d.Send(&g.h, g.crcs, g.payload)
	first := bytes.Clone(p.dc.out)
	p.dc.out = nil
	p.d.Send(&g.h, g.crcs, g.payload)
	if bytes.Contains(first, g.payload[:16]) || bytes.Contains(first, g.crcs) ||
		bytes.Equal(first, p.dc.out) {
		t.Error("it can be recognized")
	}
}

// Keys are replaced on the way, at both ends at the same frame.
func TestRekey(t *testing.T) {
	p := openedAs(t, 4<<20, encrypted)
	p.a.handler = &counter{}
	before := p.d.sealed.send.key
	for _, d := range []*direction{p.d.sealed.send, p.a.sealed.receive} {
		d.count = rekeyAfter - 3
	}
	g := makeFrame(rand.New(rand.NewPCG(1, 1)), dataplane.OpWrite, 0, 4096)
	for range 6 {
		p.dc.out = p.dc.out[:0]
		p.d.Send(&g.h, g.crcs, g.payload)
		p.ac.feed(p.dc.out)
	}
	if p.ac.closed || p.d.sealed.send.key == before || p.d.sealed.send.key != p.a.sealed.receive.key {
		t.Fatalf("closed %v: %v", p.ac.closed, p.ac.err)
	}
}

// A rotation as a client and a server see it, while frames go to and fro.
func TestRotation(t *testing.T) {
	au := newAuthority()
	var p *pair
	connect := func(dc, ac *Credentials) {
		p = newPair(t, 1<<20, func(p *pair) { p.dcred, p.acred = dc, ac })
	}
	dc := certCred(dataplane.RoleClient, 1, au.node(AllRoles))
	ac := certCred(dataplane.RoleCS, 2, au.node(AllRoles))
	stale := certCred(dataplane.RoleClient, 3, au.node(AllRoles)) // misses the rotation
	rng := rand.New(rand.NewPCG(1, 1))
	works := func() error {
		g := makeFrame(rng, dataplane.OpWrite, 0, 100)
		n := len(p.ah.frames)
		p.d.Send(&g.h, g.crcs, g.payload)
		link(p.dc, p.ac)
		if len(p.ah.frames) != n+1 {
			return p.ac.err
		}
		return nil
	}
	update := func(c *Credentials) {
		node := c.Ring.Load().Certificate()
		err := c.Ring.Update(&au.set, func(public [32]byte) ([]byte, error) {
			return au.certify(public, node.Node, node.Roles), nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	must := func(what string) {
		t.Helper()
		if err := works(); err != nil || p.ac.closed {
			t.Fatalf("%s: %v", what, p.ac.err)
		}
	}
	connect(dc, ac)
	must("before")
	au.add()
	update(ac)
	must("the server accepts the new keys")
	update(dc)
	must("the client, too")
	au.set.Version++
	au.set.Current = 2
	update(dc)
	must("the client has the new certificate, the connection is older")
	connect(dc, ac)
	must("the client proves itself with it, the server doesn't yet")
	old := p
	update(ac)
	connect(dc, ac)
	must("both do")
	au.set.Generations = au.set.Generations[1:]
	au.set.Version++
	update(dc)
	update(ac)
	must("only the new keys are accepted")
	p = old // made while the server had an old certificate
	g := makeFrame(rng, dataplane.OpRead, 0, 0)
	p.a.Send(&g.h, nil, nil)
	if link(p.dc, p.ac); !p.dc.closed {
		t.Error("a connection outlived the keys it was made with")
	}
	connect(stale, ac)
	if p.ah.opened != 0 || dataplane.KindOf(p.ah.err) != dataplane.Denied {
		t.Errorf("the old key still works: %v", p.ah.err)
	}
	// Revocation closes what is open.
	connect(dc, ac)
	must("before it is revoked")
	au.set.Revoked = []uint64{1}
	au.set.Version++
	update(ac)
	if works(); !p.ac.closed || !strings.Contains(p.ac.err.Error(), "revoked") {
		t.Errorf("a revoked node goes on: %v", p.ac.err)
	}
}

// The stream of a NetConn in both directions, in pieces of all sizes.
func TestNetEncrypted(t *testing.T) {
	au := newAuthority()
	o := &ServerOptions{Cred: certCred(dataplane.RoleMDS, 1, au.node(AllRoles))}
	addr := listen(t, o, func(nc *NetConn) {
		if !nc.Peer().Secure {
			t.Error("not encrypted")
		}
		io.Copy(nc, nc)
	})
	nc, err := Client(t.Context(), dial(t, addr), certCred(dataplane.RoleClient, 9, au.node(AllRoles)),
		ServiceRPC)
	if err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(sent)
	go func() {
		for rest, n := sent, 1; len(rest) > 0; n = n*3 + 1 {
			k := min(len(rest), n%(600<<10)+1)
			nc.Write(rest[:k])
			rest = rest[k:]
		}
	}()
	back := make([]byte, len(sent))
	if _, err := io.ReadFull(nc, back); err != nil || !bytes.Equal(back, sent) {
		t.Fatalf("%v, equal %v", err, bytes.Equal(back, sent))
	}
}

// A node whose key is refused again and again is refused at once, and others aren't.
func TestFailuresPerAddress(t *testing.T) {
	now := int64(1)
	f := NewFailures(func() int64 { return now })
	err := denied("wrong key")
	lines := 0
	for range 1000 {
		if f.Failed("10.0.0.1:99", err) {
			lines++
		}
	}
	if f.Allow("10.0.0.1:5") || !f.Allow("10.0.0.2:5") || lines > failBurst {
		t.Fatalf("allowed %v and %v, %d lines", f.Allow("10.0.0.1:5"), f.Allow("10.0.0.2:5"), lines)
	}
	if f.Failed("10.0.0.3:1", malformed("garbage")); len(f.sources) != 1 {
		t.Error("garbage counts as a failure of keys")
	}
	lines = 0
	for i := range 1000 {
		if f.Failed(net.JoinHostPort(net.IPv4(12, 0, byte(i>>8), byte(i)).String(), "1"),
			malformed("garbage")) {
			lines++
		}
	}
	if lines == 0 || lines > logBurst {
		t.Errorf("%d lines about 1000 broken handshakes", lines)
	}
	if now += logEvery; !f.Failed("10.0.0.3:1", malformed("garbage")) {
		t.Error("never written about again")
	}
	if now += 2 * failEvery; !f.Allow("10.0.0.1:5") {
		t.Error("never allowed again")
	}
	for i := range 3 * maxSources {
		f.Failed(net.JoinHostPort(net.IPv4(11, byte(i>>16), byte(i>>8), byte(i)).String(), "1"), err)
	}
	if len(f.sources) > maxSources {
		t.Errorf("%d addresses are remembered", len(f.sources))
	}
	f.Failed("[2001:db8::1]:1", err)
	if f.sources[addrOf("[2001:db8::ffff]:7")] == nil {
		t.Error("an IPv6 host has more than one address")
	}
}

// Strangers that say nothing are put out when there are too many, and a node gets in meanwhile.
func TestGate(t *testing.T) {
	l := startLoop(t)
	gate := NewGate(l)
	addr := gateServer(t, l, gate)
	var strangers []net.Conn
	for range 3 * MaxUnproven {
		strangers = append(strangers, dial(t, addr))
	}
	nc, err := Client(t.Context(), dial(t, addr), testCred(dataplane.RoleClient, 7), ServiceRPC)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	strangers[0].SetReadDeadline(time.Now().Add(HandshakeTime / 2))
	if _, err := strangers[0].Read(make([]byte, 1)); isDeadline(err) {
		t.Error("the first stranger is still there")
	}
	on(l, func() {
		if gate.n > MaxUnproven {
			t.Errorf("%d unproven connections", gate.n)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), HandshakeTime)
	defer cancel()
	bad := testCred(dataplane.RoleClient, 8)
	bad.Key[0]++
	refused := 0
	for range 4 * failBurst {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}).DialContext(ctx,
			"tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Client(ctx, c, bad, ServiceRPC); dataplane.KindOf(err) == dataplane.Denied {
			refused++
		}
	}
	if refused < failBurst || refused > 2*failBurst {
		t.Errorf("%d answers to wrong keys", refused)
	}
	nc, err = Client(ctx, dial(t, addr), testCred(dataplane.RoleClient, 9), ServiceRPC)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}
