package session

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
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
	MaxMessage    = 512             // bytes of one handshake message
	HandshakeTime = 5 * time.Second // from connecting to the end of the handshake
	MaxHostName   = 255             // bytes of Credentials.Name

	minVersion = 1
	maxVersion = 1
)

// Services that a dialer may ask for on a connection.
const (
	ServiceRPC  uint8 = 1 // frames: control or data
	ServiceRaft uint8 = 2 // a byte stream between metadata servers
)

const (
	keyMagic   = "PSHK"
	headSize   = 8
	nonceSize  = 32
	macSize    = sha256.Size
	helloSize  = headSize + 64
	chalSize   = headSize + 40
	proofFixed = headSize + 12 // up to the name
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
	// Accept are further keys that an acceptor takes from dialers, so that a key can be replaced
	// node by node: first accept the new one everywhere, then prove with it, then drop the old.
	Accept   [][32]byte
	Role     dataplane.Role
	ID       uint64 // client id, chunk server id, or random
	Name     string // of the host, for people; what is longer than MaxHostName is cut off
	Features uint32 // offered; what both ends offer is in Peer.Features
}

// Peer is who is at the other end, as it proved with the cluster's key.
type Peer struct {
	Role     dataplane.Role
	ID       uint64
	Name     string
	Service  uint8
	Features uint32 // that both ends have
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

// Handshake is one end of the key handshake, as a pure state machine: it has no clock, no socket
// and no randomness of its own. The byte tables are in the package comment.
type Handshake struct {
	cred    *Credentials
	dialer  bool
	service uint8 // the dialer's wish; the acceptor learns it from the proof
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
	return &Handshake{cred: cred, dialer: true, service: service, nonce: nonce,
		script: sha256.New()}
}

// NewAcceptor starts the accepting end. nonce must be random and never used before.
func NewAcceptor(cred *Credentials, nonce [32]byte) *Handshake {
	return &Handshake{cred: cred, nonce: nonce, script: sha256.New(), state: hsWaitHello}
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
		k.state = hsWaitChallenge
		return 0, k.hello(), false, nil
	case hsDone, hsFailed:
		panic(fmt.Sprintf("session: Step in state %d", k.state))
	}
	msg, err := cutMessage(in, keyMagic)
	if err == nil && msg == nil {
		return 0, nil, false, nil
	}
	if err == nil {
		out, err = k.take(msg)
	}
	if err != nil {
		k.state = hsFailed
		if !k.dialer && dataplane.KindOf(err) != dataplane.Malformed {
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
func cutMessage(in []byte, magic string) ([]byte, error) {
	n := min(len(in), len(magic))
	if string(in[:n]) != magic[:n] {
		return nil, malformed("not a pstorage handshake")
	}
	if len(in) < headSize {
		return nil, nil
	}
	size := headSize + int(binary.LittleEndian.Uint16(in[6:]))
	if size > MaxMessage {
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
	case dataplane.WrongCluster, dataplane.NotSupported, dataplane.Overloaded:
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
		return dataplane.E("handshake", k, errors.New("no protocol version in common"))
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

func (k *Handshake) hello() []byte {
	le := binary.LittleEndian
	m := message(keyMagic, msgHello, maxVersion, helloSize)
	le.PutUint32(m[8:], k.cred.Features)
	m[12] = minVersion
	copy(m[16:32], k.cred.Cluster[:])
	copy(m[32:40], keyID(&k.cred.Key))
	copy(m[40:], k.nonce[:])
	k.script.Write(m)
	return m
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
	if m[12] > maxVersion || m[5] < minVersion {
		return nil, dataplane.E("handshake", dataplane.NotSupported,
			fmt.Errorf("the peer speaks versions %d to %d, this node %d to %d",
				m[12], m[5], minVersion, maxVersion))
	}
	key := k.keyFor(m[32:40])
	if key == nil {
		return nil, denied("the peer has another key")
	}
	k.version = min(m[5], maxVersion)
	k.peer.Features = le.Uint32(m[8:]) & k.cred.Features
	copy(k.theirs[:], m[40:])
	k.script.Write(m)

	c := message(keyMagic, msgChallenge, k.version, chalSize)
	le.PutUint32(c[8:], k.peer.Features)
	copy(c[16:], k.nonce[:])
	k.script.Write(c)
	k.derive(key, k.theirs[:], k.nonce[:])
	k.state = hsWaitProof
	return c, nil
}

// keyFor returns the key that id names, if this node takes it.
func (k *Handshake) keyFor(id []byte) *[32]byte {
	if hmac.Equal(id, keyID(&k.cred.Key)) {
		return &k.cred.Key
	}
	for i := range k.cred.Accept {
		if hmac.Equal(id, keyID(&k.cred.Accept[i])) {
			return &k.cred.Accept[i]
		}
	}
	return nil
}

func (k *Handshake) takeChallenge(m []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(m) != chalSize || le.Uint32(m[12:]) != 0 {
		return nil, malformed("bad challenge")
	}
	features := le.Uint32(m[8:])
	switch {
	case m[5] < minVersion || m[5] > maxVersion:
		return nil, malformed("challenge of a version that was not offered")
	case features&^k.cred.Features != 0:
		return nil, malformed("challenge with features that were not offered")
	}
	k.version = m[5]
	k.peer.Features = features
	copy(k.theirs[:], m[16:])
	k.script.Write(m)
	k.derive(&k.cred.Key, k.nonce[:], k.theirs[:])
	k.state = hsWaitWelcome
	return k.identity(msgProof, "dialer"), nil
}

func (k *Handshake) takeProof(m []byte) ([]byte, error) {
	if err := k.takeIdentity(m, "dialer"); err != nil {
		return nil, err
	}
	switch p := &k.peer; {
	case p.Service != ServiceRPC && p.Service != ServiceRaft:
		return nil, denied(fmt.Sprintf("%v asks for unknown service %d", *p, p.Service))
	case p.Service == ServiceRaft &&
		(p.Role != dataplane.RoleMDS || k.cred.Role != dataplane.RoleMDS):
		return nil, denied(fmt.Sprintf("%v asks for the service of metadata servers", *p))
	}
	k.service = k.peer.Service
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
	m := message(keyMagic, typ, k.version, proofFixed+len(name)+macSize)
	binary.LittleEndian.PutUint64(m[8:], k.cred.ID)
	m[16] = byte(k.cred.Role)
	m[17] = k.service
	m[18] = byte(len(name))
	copy(m[proofFixed:], name)
	mac := k.mac(m[:len(m)-macSize], direction)
	copy(m[len(m)-macSize:], mac)
	k.script.Write(mac)
	return m
}

// takeIdentity checks a proof or welcome; nothing in it is kept unless its MAC is right.
func (k *Handshake) takeIdentity(m []byte, direction string) error {
	if len(m) < proofFixed+macSize || len(m) != proofFixed+int(m[18])+macSize ||
		m[19] != 0 || m[5] != k.version {
		return malformed("bad proof")
	}
	mac := m[len(m)-macSize:]
	if !hmac.Equal(k.mac(m[:len(m)-macSize], direction), mac) {
		return denied("the peer does not know the cluster's key")
	}
	k.script.Write(mac)
	p := Peer{Role: dataplane.Role(m[16]), ID: binary.LittleEndian.Uint64(m[8:]),
		Name: string(m[proofFixed : len(m)-macSize]), Service: m[17], Features: k.peer.Features}
	if p.Role == dataplane.RoleNone || p.Role > dataplane.RoleSupervisor {
		return denied(fmt.Sprintf("%v has no role that this node knows", p))
	}
	k.peer = p
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

func (k *Handshake) expand(info string) []byte {
	out, err := hkdf.Expand(sha256.New, k.prk, info, 32)
	if err != nil {
		panic("session: HKDF: " + err.Error())
	}
	return out
}

// mac adds m, a proof or welcome without its MAC, to the transcript and returns the MAC over it.
func (k *Handshake) mac(m []byte, direction string) []byte {
	k.script.Write(m)
	h := hmac.New(sha256.New, k.expand("pstorage 1 "+direction+" proof"))
	h.Write(k.script.Sum(nil))
	return h.Sum(nil)
}

func (k *Handshake) finish() {
	k.session = [32]byte(k.expand("pstorage 1 session" + string(k.script.Sum(nil))))
	k.prk = nil
	k.state = hsDone
}
