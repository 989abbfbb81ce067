package session

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"pstorage/dataplane"
)

// The password handshake: a node that has no key yet proves that its user knows the cluster's
// password, without sending it, and is given the cluster's id and its keys in secret. Messages
// have the form of the package comment, with the magic "PSPW". This is version 2; version 1 has
// only the cluster's name in message 1, and in message 4 cluster id (16 bytes) and key (32 bytes):
// for clusters whose nodes have no certificates.
//
// 1 ask, node to server (body of 99 bytes + names):
//
//	     8   32 X25519 public key, made for this connection
//	    40   32 nonce
//	    72    1 length n of the cluster's name, at most 63
//	    73    n name
//	  73+n   32 Ed25519 public key of the node
//	 105+n    1 roles that it asks for: bit 1<<role for each
//	 106+n    1 length m of the host's name, at most 255
//	 107+n    m host's name
//
// 2 salt, server to node (body of 100 bytes):
//
//	     8   32 X25519 public key, made for this connection
//	    40   32 nonce
//	    72   32 salt
//	   104    4 iterations of PBKDF2
//
// 3 proof, node to server (body of 32 bytes):
//
//	     8   32 ClientProof
//
// 4 key, server to node (body of up to 4 KiB):
//
//	     8   32 ServerSignature
//	    40      AES-256-GCM of cluster id (16 bytes) and a KeySet as JSON, 16 bytes of tag
//
// or a refusal (type 15). The proofs are those of SCRAM-SHA-256 (RFC 5802, 7677):
//
//	SaltedPassword  = PBKDF2-HMAC-SHA256(password, salt, iterations, 32)
//	ClientKey       = HMAC(SaltedPassword, "Client Key")
//	StoredKey       = SHA-256(ClientKey)
//	ServerKey       = HMAC(SaltedPassword, "Server Key")
//	AuthMessage     = "pstorage 1 password" + SHA-256(messages 1 and 2)
//	ClientProof     = ClientKey xor HMAC(StoredKey, AuthMessage)
//	ServerSignature = HMAC(ServerKey, AuthMessage + ClientProof)
//	sealing key     = HKDF-SHA256(X25519 secret + ServerKey, salt SHA-256(messages 1 to 3),
//	                  "pstorage 1 sealed key"), used once, with a nonce of zeros
//
// Both public keys are under both proofs. So somebody in the middle, who must put his own public
// key in, can neither pass the node's proof on nor answer it, unless he has the verifier; and the
// node takes no key from a server that doesn't have it. Limits: a false server that a node is led
// to learns a proof on which passwords can be tried (MinIterations each), as with every SCRAM;
// the password should not be a word from a dictionary. The server answers only after the node's
// proof, so that asking it teaches nothing, and failures are rate-limited.

// MinIterations is the fewest iterations of PBKDF2 that either end accepts. It costs a node some
// 50 ms, once.
const MinIterations = 100_000

const (
	maxIterations  = 10_000_000
	maxClusterName = 63
	passMagic      = "PSPW"
	passVersion    = 2
	maxKeys        = 4096 // bytes of message 4
	saltSize       = 32

	msgAsk   = 1
	msgSalt  = 2
	msgPass  = 3
	msgKey   = 4
	askFixed = headSize + 65
	askNode  = 34
	saltLen  = headSize + 100
	passLen  = headSize + 32
	keyFixed = headSize + 32 + 16 + 16
)

// Verifier is what a server keeps of a password: enough to check it, not enough to know it or to
// pass for a node. Keep it secret all the same. It can be stored as JSON.
type Verifier struct {
	Salt       []byte `json:"salt"`
	Iterations uint32 `json:"iterations"`
	StoredKey  []byte `json:"stored_key"`
	ServerKey  []byte `json:"server_key"`
}

// NewVerifier makes a verifier with a new random salt.
func NewVerifier(password string) (Verifier, error) {
	v := Verifier{Salt: make([]byte, saltSize), Iterations: MinIterations}
	if password == "" {
		return Verifier{}, dataplane.E("make a password verifier", dataplane.Invalid,
			errors.New("the password is empty"))
	}
	rand.Read(v.Salt) // never fails
	s, err := newSecrets(password, v.Salt, v.Iterations)
	if err != nil {
		return Verifier{}, err
	}
	v.StoredKey, v.ServerKey = s.stored, s.server
	return v, nil
}

func (v *Verifier) check() error {
	if len(v.Salt) != saltSize || len(v.StoredKey) != 32 || len(v.ServerKey) != 32 ||
		v.Iterations < MinIterations || v.Iterations > maxIterations {
		return dataplane.E("check a password", dataplane.Internal,
			errors.New("the stored password verifier is damaged"))
	}
	return nil
}

// secrets are what SCRAM derives from a password.
type secrets struct{ client, stored, server []byte }

func newSecrets(password string, salt []byte, iterations uint32) (*secrets, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, int(iterations), sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("PBKDF2: %w", err)
	}
	client := mac(salted, "Client Key")
	stored := sha256.Sum256(client)
	return &secrets{client: client, stored: stored[:], server: mac(salted, "Server Key")}, nil
}

func mac(key []byte, parts ...string) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}

func digest(messages ...[]byte) []byte {
	h := sha256.New()
	for _, m := range messages {
		h.Write(m)
	}
	return h.Sum(nil)
}

func authMessage(m1, m2 []byte) string { return "pstorage 1 password" + string(digest(m1, m2)) }

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	for i := range a {
		out[i] = a[i] ^ b[i]
	}
	return out
}

// sealer is the cipher for message 4. Its key serves once, so a fixed nonce is right.
func sealer(shared, serverKey, script []byte) (cipher.AEAD, []byte, error) {
	secret := append(append([]byte(nil), shared...), serverKey...)
	key, err := hkdf.Key(sha256.New, secret, script, "pstorage 1 sealed key", 32)
	if err != nil {
		return nil, nil, fmt.Errorf("HKDF: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, nil, err
	}
	return aead, make([]byte, aead.NonceSize()), nil
}

// NodeKey is what a node needs to be part of a cluster.
type NodeKey struct {
	Cluster     dataplane.ClusterID
	ClusterName string
	Keys        KeySet
}

// LegacyKeys are the keys of a node of a cluster that has no certificates.
func LegacyKeys(key [32]byte) KeySet {
	return KeySet{Generations: []Generation{{Key: key}}}
}

// NodeRequest is what a node asks for.
type NodeRequest struct {
	Public [32]byte // Ed25519
	Roles  uint8    // bits: 1<<role
	Host   string   // its name, for people
}

// PasswordAuth lets a server hand out keys to whoever knows the password.
type PasswordAuth struct {
	Verifier    Verifier
	Cluster     dataplane.ClusterID
	ClusterName string
	Ring        *Ring     // of this server
	Limit       *Failures // shared by all connections of a listener; nil: no limit
	// Grant makes a node: the answer has its certificate, and no private key.
	Grant func(ctx context.Context, req *NodeRequest) (*KeySet, error)
}

// AuthNode proves the password of the cluster over conn, which it has dialed to a metadata server,
// and returns the keys of a new node with these roles. conn is closed. Kinds: Denied for a wrong
// password, WrongCluster for another name, Overloaded after too many failures.
func AuthNode(ctx context.Context, conn net.Conn, clusterName, password, host string,
	roles uint8) (*NodeKey, error) {
	defer conn.Close()
	defer closeOnDone(ctx, conn)()
	op := fmt.Sprintf("authenticate this node to cluster %q at %v", clusterName, conn.RemoteAddr())
	if len(clusterName) > maxClusterName || clusterName == "" || password == "" {
		return nil, dataplane.E(op, dataplane.Invalid,
			errors.New("a cluster name of 1 to 63 bytes and a password are needed"))
	}
	conn.SetDeadline(time.Now().Add(HandshakeTime))
	private := NewSecret()
	k, err := authNode(conn, clusterName, password,
		&NodeRequest{Public: PublicKey(&private), Roles: roles, Host: host})
	if err == nil {
		if len(k.Keys.Cert) > 0 {
			k.Keys.Private = private
		}
		if cerr := k.Keys.Check(k.Cluster); cerr != nil {
			err = denied(fmt.Sprintf("the server gave %v", cerr))
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			err = dataplane.E("", dataplane.TimedOut, ctx.Err())
		}
		return nil, at(op, err)
	}
	return k, nil
}

func authNode(conn net.Conn, clusterName, password string, req *NodeRequest) (*NodeKey, error) {
	priv, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	host := req.Host[:min(len(req.Host), MaxHostName)]
	ask := message(passMagic, msgAsk, passVersion, askFixed+len(clusterName)+askNode+len(host))
	copy(ask[8:40], priv.PublicKey().Bytes())
	rand.Read(ask[40:72])
	ask[72] = byte(len(clusterName))
	node := ask[askFixed+copy(ask[askFixed:], clusterName):]
	copy(node, req.Public[:])
	node[32], node[33] = req.Roles, byte(len(host))
	copy(node[askNode:], host)
	salt, err := exchange(conn, ask, msgSalt, saltLen, saltLen)
	if err != nil {
		return nil, err
	}
	iterations := binary.LittleEndian.Uint32(salt[104:])
	if iterations < MinIterations || iterations > maxIterations {
		return nil, denied(fmt.Sprintf("the server asks for %d iterations of PBKDF2, outside %d-%d",
			iterations, MinIterations, maxIterations))
	}
	shared, err := agree(priv, salt[8:40])
	if err != nil {
		return nil, err
	}
	s, err := newSecrets(password, salt[72:104], iterations)
	if err != nil {
		return nil, err
	}
	auth := authMessage(ask, salt)
	pass := message(passMagic, msgPass, passVersion, passLen)
	copy(pass[8:], xor(s.client, mac(s.stored, auth)))
	key, err := exchange(conn, pass, msgKey, keyFixed, maxKeys)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(mac(s.server, auth, string(pass[8:])), key[8:40]) {
		return nil, denied("the server does not know the cluster's password: it is not trusted")
	}
	aead, nonce, err := sealer(shared, s.server, digest(ask, salt, pass))
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nonce, key[40:], nil)
	if err != nil {
		return nil, denied("the sealed key from the server is damaged")
	}
	n := &NodeKey{ClusterName: clusterName}
	copy(n.Cluster[:], plain)
	if err := json.Unmarshal(plain[16:], &n.Keys); err != nil {
		return nil, denied("the sealed key from the server is damaged")
	}
	return n, nil
}

// exchange sends m and reads the answer, which must be of a type and of least to most bytes, or a
// refusal.
func exchange(conn net.Conn, m []byte, typ uint8, least, most int) ([]byte, error) {
	if _, err := conn.Write(m); err != nil {
		return nil, err
	}
	in, err := readMessage(conn, passMagic, most)
	if err != nil {
		return nil, err
	}
	if in[4] == msgRefusal && len(in) == refuseSize {
		switch k := dataplane.Kind(binary.LittleEndian.Uint16(in[8:])); k {
		case dataplane.WrongCluster:
			return nil, dataplane.E("", k, errors.New("the server is not of the cluster of this name"))
		case dataplane.Overloaded:
			return nil, dataplane.E("", k, errors.New("too many failed attempts: wait a minute"))
		case dataplane.NotSupported:
			return nil, dataplane.E("", k, errors.New("the server does not take passwords here, or is "+
				"of another version than this program"))
		case dataplane.NotReady:
			return nil, dataplane.E("", k, errors.New("no metadata server leads now: try again"))
		default:
			return nil, denied("wrong password")
		}
	}
	if in[4] != typ || in[5] != passVersion || len(in) < least || len(in) > most {
		return nil, malformed(fmt.Sprintf("message of type %d and %d bytes out of turn", in[4], len(in)))
	}
	return in, nil
}

func agree(priv *ecdh.PrivateKey, public []byte) ([]byte, error) {
	pub, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, malformed("bad X25519 key")
	}
	shared, err := priv.ECDH(pub) // refuses points of low order
	if err != nil {
		return nil, malformed("bad X25519 key")
	}
	return shared, nil
}

// servePassword is the server's end; ask is the first message. On an error a refusal was sent.
func servePassword(conn net.Conn, ask []byte, o *ServerOptions) error {
	err := givePassword(conn, ask, o)
	if err == nil {
		o.log().Info("node key given out to a node that knows the password",
			"peer", conn.RemoteAddr().String())
		return nil
	}
	if dataplane.KindOf(err) != dataplane.Malformed {
		conn.Write(refusal(passMagic, refusalKind(err))) // it may be gone already
	}
	return err
}

func givePassword(conn net.Conn, ask []byte, o *ServerOptions) error {
	a := o.Auth
	if len(ask) < askFixed || len(ask) < askFixed+int(ask[72]) || ask[4] != msgAsk {
		return malformed("bad question for a key")
	}
	if a == nil || ask[5] < 1 || ask[5] > passVersion {
		return dataplane.E("", dataplane.NotSupported, errors.New("no password service of this version"))
	}
	end := askFixed + int(ask[72])
	if name := string(ask[askFixed:end]); name != a.ClusterName {
		return dataplane.E("", dataplane.WrongCluster, fmt.Errorf("the node asks for cluster %q", name))
	}
	req, err := parseRequest(ask[5], ask[end:])
	if err != nil {
		return err
	}
	if err := a.Verifier.check(); err != nil {
		return err
	}
	// An attempt is paid for in advance, so that many at once can't pass together.
	remote := conn.RemoteAddr().String()
	if !a.Limit.Take(remote) {
		return dataplane.E("", dataplane.Overloaded, errors.New("too many failed password attempts"))
	}
	return checkPassword(conn, ask, req, a)
}

// parseRequest decodes what an ask has behind the cluster's name; nil for version 1.
func parseRequest(version uint8, b []byte) (*NodeRequest, error) {
	if version == 1 && len(b) == 0 {
		return nil, nil
	}
	if version == 1 || len(b) < askNode || len(b) != askNode+int(b[33]) || b[32]&^AllRoles != 0 {
		return nil, malformed("bad question for a key")
	}
	return &NodeRequest{Public: [32]byte(b), Roles: b[32], Host: string(b[askNode:])}, nil
}

// granted is what a node gets that knows the password: the plain text of message 4.
func (a *PasswordAuth) granted(req *NodeRequest) ([]byte, error) {
	out := append([]byte(nil), a.Cluster[:]...)
	if old := a.Ring.Load().generation(0); req == nil {
		if old == nil {
			return nil, dataplane.E("", dataplane.NotSupported,
				errors.New("a node of an older version than the cluster's keys"))
		}
		return append(out, old.Key[:]...), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), HandshakeTime/2)
	defer cancel()
	k, err := a.Grant(ctx, req)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(k)
	return append(out, b...), err
}

func checkPassword(conn net.Conn, ask []byte, req *NodeRequest, a *PasswordAuth) error {
	priv, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	shared, err := agree(priv, ask[8:40])
	if err != nil {
		return err
	}
	version := ask[5]
	salt := message(passMagic, msgSalt, version, saltLen)
	copy(salt[8:40], priv.PublicKey().Bytes())
	rand.Read(salt[40:72])
	copy(salt[72:104], a.Verifier.Salt)
	binary.LittleEndian.PutUint32(salt[104:], a.Verifier.Iterations)
	if _, err := conn.Write(salt); err != nil {
		return err
	}
	pass, err := readMessage(conn, passMagic, passLen)
	if err != nil {
		return err
	}
	if pass[4] != msgPass || pass[5] != version || len(pass) != passLen {
		return malformed("bad password proof")
	}
	auth := authMessage(ask, salt)
	client := xor(pass[8:], mac(a.Verifier.StoredKey, auth))
	if !hmac.Equal(digest(client), a.Verifier.StoredKey) {
		return denied("wrong password")
	}
	a.Limit.GiveBack(conn.RemoteAddr().String()) // also if there is no key to be had now
	aead, nonce, err := sealer(shared, a.Verifier.ServerKey, digest(ask, salt, pass))
	if err != nil {
		return err
	}
	plain, err := a.granted(req)
	if err != nil {
		return err
	}
	key := message(passMagic, msgKey, version, headSize+32+len(plain)+gcmTag)
	copy(key[8:], mac(a.Verifier.ServerKey, auth, string(pass[8:])))
	aead.Seal(key[40:40], nonce, plain, nil)
	_, err = conn.Write(key)
	return err
}
