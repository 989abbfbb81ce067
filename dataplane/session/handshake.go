package session

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"time"

	"pstorage/dataplane"
)

// Limits of the handshake.
const (
	MaxMessage    = 640             // bytes of one handshake message
	HandshakeTime = 5 * time.Second // from connecting to the end of the handshake
	MaxHostName   = 255             // bytes of Credentials.Name

	versionKey  = 1 // the cluster's key proves everything
	versionCert = 2 // ... and each node has a certificate
)

// Features that this package negotiates. The bits below are the users'.
const (
	// FeatureSecure: everything behind the handshake is encrypted. Both must be able to; then it is
	// on if one of them wants it.
	FeatureSecure uint32 = 1 << 28
	featureWant   uint32 = 1 << 29
	// FeatureTag: headers of frames carry authentication tags. On if both are able to and nothing
	// is encrypted.
	FeatureTag uint32 = 1 << 30
)

// Services that a dialer may ask for on a connection.
const (
	ServiceRPC   uint8 = 1 // frames: control or data
	ServiceRaft  uint8 = 2 // a byte stream between metadata servers
	ServiceRelay uint8 = 3 // of metadata servers: a byte stream to the one that leads
)

const (
	keyMagic   = "PSHK"
	headSize   = 8
	nonceSize  = 32
	macSize    = sha256.Size
	helloSize  = headSize + 64
	chalSize   = headSize + 40
	proofFixed = headSize + 12 // up to the name
	pubSize    = 32
	refuseSize = headSize + 4
)

const (
	msgHello     = 1
	msgChallenge = 2
	msgProof     = 3
	msgWelcome   = 4
	msgRefusal   = 15
)

// Credentials are what this process proves itself with. They are not changed after first use.
type Credentials struct {
	Cluster     dataplane.ClusterID
	ClusterName string
	Key         [32]byte
	// Ring, if not nil, is used instead of Key: keys that can be replaced, and a certificate.
	Ring     *Ring
	Role     dataplane.Role
	ID       uint64 // client id, chunk server id, or random
	Name     string // of the host, for people; what is longer than MaxHostName is cut off
	Features uint32 // offered; what both ends offer is in Peer.Features
}

// keys are the keys of now.
func (c *Credentials) keys() *KeySet {
	if c.Ring != nil {
		return c.Ring.Load()
	}
	return &KeySet{Generations: []Generation{{Key: c.Key}}}
}

// Peer is who is at the other end, as it proved with its keys.
type Peer struct {
	Role       dataplane.Role
	ID         uint64
	Name       string
	Service    uint8
	Features   uint32 // that both ends have
	Node       uint64 // in its certificate; 0: it has none
	Generation uint32 // of the keys that were used
	Secure     bool   // the connection is encrypted
}

func (p Peer) String() string {
	return fmt.Sprintf("%v %d on %q", p.Role, p.ID, p.Name)
}

type hsState uint8

const (
	hsStart hsState = iota // dialer: hello not given out yet
	hsWaitHello
	hsWaitChallenge
	hsWaitProof
	hsWaitWelcome
	hsDone
	hsFailed
)

// Handshake is one end of the key handshake, as a state machine without clock and socket. Only
// with a certificate does it need randomness of its own. The byte tables are in the package
// comment.
type Handshake struct {
	cred    *Credentials
	set     *KeySet
	gen     *Generation // in use on this connection
	offer   uint32      // features
	dialer  bool
	eph     *ecdh.PrivateKey // made for this connection; version 2
	service uint8            // the dialer's wish; the acceptor learns it from the proof
	named   bool             // acceptor: the hello named a key that is accepted
	// quiet, if not nil, is for an address that failed too often: it isn't answered, but who names a
	// key that is accepted goes on if quiet says so.
	quiet   func() bool
	state   hsState
	nonce   [nonceSize]byte
	theirs  [nonceSize]byte
	version uint8
	peer    Peer
	script  hash.Hash // SHA-256 over all messages so far
	prk     []byte
	session [32]byte
}

// NewDialer starts the connecting end. The first Step, with no input, gives out the hello. nonce
// must be random and never used before.
func NewDialer(cred *Credentials, service uint8, nonce [32]byte) *Handshake {
	k := newHandshake(cred, nonce)
	k.dialer, k.service = true, service
	return k
}

// NewAcceptor starts the accepting end. nonce must be random and never used before.
func NewAcceptor(cred *Credentials, nonce [32]byte) *Handshake {
	k := newHandshake(cred, nonce)
	k.state = hsWaitHello
	return k
}

func newHandshake(cred *Credentials, nonce [32]byte) *Handshake {
	k := &Handshake{cred: cred, set: cred.keys(), nonce: nonce, script: sha256.New(),
		offer: cred.Features | FeatureSecure | FeatureTag}
	if k.set.Secure {
		k.offer |= featureWant
	}
	return k
}

// forStream says that what follows is no frames of the data path: it is encrypted in any case,
// unless the peer is too old for it.
func (k *Handshake) forStream() *Handshake {
	k.offer = k.offer&^FeatureTag | featureWant
	return k
}

// Peer is the other end; valid once Step reported done.
func (k *Handshake) Peer() Peer { return k.peer }

// SessionKey is the secret of this connection; valid once Step reported done.
func (k *Handshake) SessionKey() [32]byte { return k.session }

// Step is given all unread bytes of the stream. It consumes at most one message; with consumed 0
// and no error it wants more bytes. out is to be sent to the peer, also when err is set (then it
// is a refusal, and the connection is closed after it). After done the stream belongs to the
// service. Garbage is not answered at all. Step is not called again after done or an error.
func (k *Handshake) Step(in []byte) (consumed int, out []byte, done bool, err error) {
	switch k.state {
	case hsStart:
		if out, err = k.hello(); err != nil {
			k.state = hsFailed
			return 0, nil, false, err
		}
		k.state = hsWaitChallenge
		return 0, out, false, nil
	case hsDone, hsFailed:
		panic(fmt.Sprintf("session: Step in state %d", k.state))
	}
	msg, err := cutMessage(in, keyMagic, MaxMessage)
	if err == nil && msg == nil {
		return 0, nil, false, nil
	}
	if err == nil {
		out, err = k.take(msg)
	}
	if err != nil && k.quiet != nil {
		err = dataplane.E("handshake", dataplane.Overloaded, errTooMany)
	}
	if err != nil {
		k.state = hsFailed
		if !k.dialer && k.quiet == nil && dataplane.KindOf(err) != dataplane.Malformed {
			out = refusal(keyMagic, refusalKind(err))
		}
		return len(msg), out, false, err
	}
	return len(msg), out, k.state == hsDone, nil
}

func (k *Handshake) take(msg []byte) ([]byte, error) {
	switch {
	case k.state == hsWaitHello && msg[4] == msgHello:
		return k.takeHello(msg)
	case k.state == hsWaitChallenge && msg[4] == msgChallenge:
		return k.takeChallenge(msg)
	case k.state == hsWaitProof && msg[4] == msgProof:
		return k.takeProof(msg)
	case k.state == hsWaitWelcome && msg[4] == msgWelcome:
		return k.takeWelcome(msg)
	case k.dialer && msg[4] == msgRefusal:
		return nil, refused(msg)
	}
	return nil, malformed(fmt.Sprintf("message of type %d out of turn", msg[4]))
}

// cutMessage returns the first message of in, or nil if it isn't complete. What can be known to be
// wrong is refused as early as its bytes are there.
func cutMessage(in []byte, magic string, most int) ([]byte, error) {
	n := min(len(in), len(magic))
	if string(in[:n]) != magic[:n] {
		return nil, malformed("not a pstorage handshake")
	}
	if len(in) < headSize {
		return nil, nil
	}
	size := headSize + int(binary.LittleEndian.Uint16(in[6:]))
	if size > most {
		return nil, malformed("message too long")
	}
	if len(in) < size {
		return nil, nil
	}
	return in[:size], nil
}

func malformed(why string) error {
	return dataplane.E("handshake", dataplane.Malformed, errors.New(why))
}

func denied(why string) error {
	return dataplane.E("handshake", dataplane.Denied, errors.New(why))
}

// refusalKind is what a stranger is told of err.
func refusalKind(err error) dataplane.Kind {
	switch k := dataplane.KindOf(err); k {
	case dataplane.WrongCluster, dataplane.NotSupported, dataplane.Overloaded, dataplane.NotReady:
		return k
	}
	return dataplane.Denied
}

// message starts a message in a new slice with room for size bytes.
func message(magic string, typ, version uint8, size int) []byte {
	m := make([]byte, size)
	copy(m, magic)
	m[4], m[5] = typ, version
	binary.LittleEndian.PutUint16(m[6:], uint16(size-headSize))
	return m
}

func refusal(magic string, kind dataplane.Kind) []byte {
	m := message(magic, msgRefusal, 0, refuseSize)
	binary.LittleEndian.PutUint16(m[8:], uint16(kind))
	return m
}

// refused turns the peer's refusal into an error for people.
func refused(msg []byte) error {
	if len(msg) != refuseSize {
		return malformed("refusal of a wrong length")
	}
	switch k := dataplane.Kind(binary.LittleEndian.Uint16(msg[8:])); k {
	case dataplane.WrongCluster:
		return dataplane.E("handshake", k, errors.New("the server belongs to another cluster"))
	case dataplane.NotSupported:
		return dataplane.E("handshake", k, errors.New("no protocol version in common, or encryption "+
			"that only one end is able to or allowed to do without"))
	case dataplane.NotReady:
		return dataplane.E("handshake", k, errors.New("the server waits for its own keys"))
	case dataplane.Overloaded:
		return dataplane.E("handshake", k, errors.New("the server is busy: try again later"))
	default:
		return denied("the server refused this node's key or role")
	}
}

// keyID names a key without telling it.
func keyID(key *[32]byte) []byte {
	id, err := hkdf.Key(sha256.New, key[:], nil, "pstorage key id", 8)
	if err != nil {
		panic("session: HKDF: " + err.Error())
	}
	return id
}

func (k *Handshake) hello() ([]byte, error) {
	if k.gen = k.set.own(); k.gen == nil {
		return nil, denied("this node's key is out of date: run pstorage auth-node")
	}
	le := binary.LittleEndian
	k.version = versionOf(k.gen)
	m := message(keyMagic, msgHello, k.version, helloSize)
	le.PutUint32(m[8:], k.offer)
	m[12] = k.version
	copy(m[16:32], k.cred.Cluster[:])
	copy(m[32:40], keyID((*[32]byte)(&k.gen.Key)))
	copy(m[40:], k.nonce[:])
	k.script.Write(m)
	return m, nil
}

// versionOf is the version that a generation's keys are for.
func versionOf(g *Generation) uint8 {
	if g.Number == 0 {
		return versionKey
	}
	return versionCert
}

func (k *Handshake) takeHello(m []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(m) != helloSize || m[13]|m[14]|m[15] != 0 || m[12] > m[5] {
		return nil, malformed("bad hello")
	}
	if !bytes.Equal(m[16:32], k.cred.Cluster[:]) {
		return nil, dataplane.E("handshake", dataplane.WrongCluster,
			fmt.Errorf("the peer asks for cluster %x", m[16:32]))
	}
	if k.gen = k.set.byKeyID(m[32:40]); k.gen == nil {
		return nil, denied("the peer has another key, or an old one")
	}
	if k.version = versionOf(k.gen); m[12] > k.version || m[5] < k.version {
		return nil, dataplane.E("handshake", dataplane.NotSupported,
			fmt.Errorf("the peer speaks versions %d to %d, its key is for version %d", m[12], m[5],
				k.version))
	}
	if k.quiet != nil && !k.quiet() {
		return nil, dataplane.E("handshake", dataplane.Overloaded, errTooMany)
	}
	k.named, k.quiet = true, nil
	if k.version == versionCert && k.set.own() == nil {
		return nil, denied("this node's own key is out of date: run pstorage auth-node")
	}
	if k.version == versionCert && len(k.set.Cert) == 0 {
		return nil, dataplane.E("handshake", dataplane.NotReady,
			errors.New("this node has no certificate yet"))
	}
	if err := k.choose(le.Uint32(m[8:])); err != nil {
		return nil, err
	}
	copy(k.theirs[:], m[40:])
	k.script.Write(m)

	size := chalSize
	if k.version == versionCert {
		size += pubSize
	}
	c := message(keyMagic, msgChallenge, k.version, size)
	le.PutUint32(c[8:], k.peer.Features)
	copy(c[16:], k.nonce[:])
	if k.version == versionCert {
		if err := k.newEphemeral(); err != nil {
			return nil, err
		}
		copy(c[chalSize:], k.eph.PublicKey().Bytes())
	}
	k.script.Write(c)
	k.derive((*[32]byte)(&k.gen.Key), k.theirs[:], k.nonce[:])
	k.state = hsWaitProof
	return c, nil
}

// choose decides what both ends do, of what the dialer offers.
func (k *Handshake) choose(offered uint32) error {
	both := offered & k.offer &^ featureWant
	if (offered|k.offer)&featureWant == 0 {
		both &^= FeatureSecure
	}
	if both&FeatureSecure != 0 {
		both &^= FeatureTag
	} else if k.set.Secure {
		return dataplane.E("handshake", dataplane.NotSupported, errStrip)
	}
	k.peer.Features = both
	k.peer.Secure = both&FeatureSecure != 0
	return nil
}

func (k *Handshake) newEphemeral() (err error) {
	k.eph, err = ecdh.X25519().GenerateKey(rand.Reader)
	return err
}

func (k *Handshake) takeChallenge(m []byte) ([]byte, error) {
	le := binary.LittleEndian
	size := chalSize
	if k.version == versionCert {
		size += pubSize
	}
	if len(m) != size || le.Uint32(m[12:]) != 0 {
		return nil, malformed("bad challenge")
	}
	features := le.Uint32(m[8:])
	switch {
	case m[5] != k.version:
		return nil, malformed("challenge of a version that was not offered")
	case features&^(k.offer&^featureWant) != 0 ||
		features&FeatureSecure != 0 && features&FeatureTag != 0:
		return nil, malformed("challenge with features that were not offered")
	case k.set.Secure && features&FeatureSecure == 0:
		return nil, dataplane.E("handshake", dataplane.NotSupported, errStrip)
	}
	k.peer.Features, k.peer.Secure = features, features&FeatureSecure != 0
	copy(k.theirs[:], m[16:])
	k.script.Write(m)
	k.derive((*[32]byte)(&k.gen.Key), k.nonce[:], k.theirs[:])
	k.state = hsWaitWelcome
	if k.version == versionCert {
		if err := k.newEphemeral(); err != nil {
			return nil, err
		}
	}
	proof := k.identity(msgProof, "dialer")
	if k.version == versionCert {
		return proof, k.agree(m[chalSize:])
	}
	return proof, nil
}

func (k *Handshake) takeProof(m []byte) ([]byte, error) {
	if err := k.takeIdentity(m, "dialer"); err != nil {
		return nil, err
	}
	switch p := &k.peer; {
	case p.Service < ServiceRPC || p.Service > ServiceRelay:
		return nil, denied(fmt.Sprintf("%v asks for unknown service %d", *p, p.Service))
	case p.Service == ServiceRaft && p.Role != dataplane.RoleMDS,
		p.Service != ServiceRPC && k.cred.Role != dataplane.RoleMDS:
		return nil, denied(fmt.Sprintf("%v asks for the service of metadata servers", *p))
	}
	k.service = k.peer.Service
	if k.version == versionCert {
		if err := k.agree(m[proofFixed : proofFixed+pubSize]); err != nil {
			return nil, err
		}
	}
	out := k.identity(msgWelcome, "acceptor")
	k.finish()
	return out, nil
}

func (k *Handshake) takeWelcome(m []byte) ([]byte, error) {
	if err := k.takeIdentity(m, "acceptor"); err != nil {
		return nil, err
	}
	if k.peer.Service != k.service {
		return nil, denied("the server gives another service than was asked for")
	}
	k.finish()
	return nil, nil
}

// identity makes a proof or welcome and adds it to the transcript.
func (k *Handshake) identity(typ uint8, direction string) []byte {
	name := k.cred.Name[:min(len(k.cred.Name), MaxHostName)]
	at, size := k.identitySize(typ, len(name))
	m := message(keyMagic, typ, k.version, size)
	binary.LittleEndian.PutUint64(m[8:], k.cred.ID)
	m[16] = byte(k.cred.Role)
	m[17] = k.service
	m[18] = byte(len(name))
	if at.name > proofFixed {
		copy(m[proofFixed:], k.eph.PublicKey().Bytes())
	}
	copy(m[at.name:], name)
	k.script.Write(m[:at.cert])
	if k.version == versionCert {
		copy(m[at.cert:], k.set.Cert)
		k.script.Write(m[at.cert:at.sig])
		private := ed25519.NewKeyFromSeed(k.set.Private[:])
		copy(m[at.sig:], ed25519.Sign(private, k.signed(direction)))
		k.script.Write(m[at.sig:at.mac])
	}
	mac := k.mac(direction)
	copy(m[at.mac:], mac)
	k.script.Write(mac)
	return m
}

// identityParts are where the parts of a proof or welcome begin.
type identityParts struct{ name, cert, sig, mac int }

func (k *Handshake) identitySize(typ uint8, name int) (at identityParts, size int) {
	at.name = proofFixed
	if k.version == versionCert && typ == msgProof {
		at.name += pubSize
	}
	at.cert = at.name + name
	at.sig = at.cert
	at.mac = at.cert
	if k.version == versionCert {
		at.sig = at.cert + certSize
		at.mac = at.sig + ed25519.SignatureSize
	}
	return at, at.mac + macSize
}

// signed is what the sender of a proof or welcome signs: the transcript, its certificate included.
func (k *Handshake) signed(direction string) []byte {
	return append([]byte("pstorage 2 "+direction+" signature"), k.script.Sum(nil)...)
}

// takeIdentity checks a proof or welcome; nothing in it is kept unless its MAC, and in version 2
// certificate and signature, are right. Who doesn't have the cluster's key costs one MAC.
func (k *Handshake) takeIdentity(m []byte, direction string) error {
	if len(m) < proofFixed+macSize || m[19] != 0 || m[5] != k.version {
		return malformed("bad proof")
	}
	at, size := k.identitySize(m[4], int(m[18]))
	if len(m) != size {
		return malformed("bad proof")
	}
	var signed []byte
	if k.version == versionCert {
		k.script.Write(m[:at.sig])
		signed = k.signed(direction)
		k.script.Write(m[at.sig:at.mac])
	} else {
		k.script.Write(m[:at.mac])
	}
	if !hmac.Equal(k.mac(direction), m[at.mac:]) {
		return denied("the peer does not know the cluster's key")
	}
	k.script.Write(m[at.mac:])
	p := k.peer
	p.Role, p.ID = dataplane.Role(m[16]), binary.LittleEndian.Uint64(m[8:])
	p.Name, p.Service = string(m[at.name:at.cert]), m[17]
	p.Generation = k.gen.Number
	if p.Role == dataplane.RoleNone || p.Role > dataplane.RoleSupervisor {
		return denied(fmt.Sprintf("%v has no role that this node knows", p))
	}
	if k.version == versionCert {
		if err := k.takeCert(&p, m[at.cert:at.sig], m[at.sig:at.mac], signed); err != nil {
			return err
		}
	}
	if err := k.set.admits(&p); err != nil {
		return err
	}
	k.peer = p
	return nil
}

// takeCert checks that the peer has the certificate's private key, and that the cluster gave it
// the role that it names.
func (k *Handshake) takeCert(p *Peer, cert, sig, signed []byte) error {
	c, err := k.set.checkCert(cert, k.cred.Cluster)
	switch {
	case err != nil:
		return denied(fmt.Sprintf("%v shows %v", *p, err))
	case c.Roles&RoleBit(p.Role) == 0:
		return denied(fmt.Sprintf("%v: its key isn't good for that role", *p))
	case !ed25519.Verify(c.Public[:], signed, sig):
		return denied(fmt.Sprintf("%v shows a certificate that isn't its own", *p))
	}
	p.Node = c.Node
	p.Generation = min(p.Generation, c.Generation)
	return nil
}

// agree mixes the secret that only the two ends have into the keys that follow.
func (k *Handshake) agree(public []byte) error {
	shared, err := agree(k.eph, public)
	if err != nil {
		return err
	}
	prk, err := hkdf.Extract(sha256.New, shared, k.prk)
	if err != nil {
		panic("session: HKDF: " + err.Error())
	}
	k.prk, k.eph = prk, nil
	return nil
}

// derive makes the secrets of this connection from the cluster's key and both nonces.
func (k *Handshake) derive(key *[32]byte, dialer, acceptor []byte) {
	salt := make([]byte, 0, 2*nonceSize)
	salt = append(append(salt, dialer...), acceptor...)
	prk, err := hkdf.Extract(sha256.New, key[:], salt)
	if err != nil {
		panic("session: HKDF: " + err.Error())
	}
	k.prk = prk
}

// mac is the MAC over the transcript so far.
func (k *Handshake) mac(direction string) []byte {
	h := hmac.New(sha256.New, expand(k.prk, fmt.Sprintf("pstorage %d %s proof", k.version, direction)))
	h.Write(k.script.Sum(nil))
	return h.Sum(nil)
}

func (k *Handshake) finish() {
	k.session = [32]byte(expand(k.prk,
		fmt.Sprintf("pstorage %d session%s", k.version, k.script.Sum(nil))))
	k.prk = nil
	k.state = hsDone
}
