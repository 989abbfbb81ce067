package session

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"pstorage/dataplane"
)

// Secret is a key of 32 bytes; as text it is hexadecimal.
type Secret [32]byte

// MarshalText implements encoding.TextMarshaler.
func (s Secret) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Secret) UnmarshalText(text []byte) error {
	if len(text) != 2*len(s) {
		return fmt.Errorf("a key has %d hexadecimal digits, not %d", 2*len(s), len(text))
	}
	_, err := hex.Decode(s[:], text)
	return err
}

// NewSecret returns a random key.
func NewSecret() (s Secret) {
	rand.Read(s[:]) // never fails
	return s
}

// Generation is what all nodes of a cluster have in common until the keys are rotated.
// Generation 0 is the key of clusters made before nodes had certificates: its holders are believed
// whatever role they name.
type Generation struct {
	Number uint32 `json:"number"`
	Key    Secret `json:"key"`  // of the cluster
	Sign   Secret `json:"sign"` // Ed25519 public key that certificates are checked with
}

// KeySet is everything a node knows about keys. It is never changed, only replaced.
type KeySet struct {
	Version uint64 `json:"version"` // of the cluster's part; larger is newer
	Secure  bool   `json:"secure"`  // all connections are to be encrypted
	// Generations are those that are accepted now: one, or two while keys are being rotated.
	Generations []Generation `json:"generations"`
	// Current is the generation to prove oneself with as soon as one has a certificate of it.
	Current uint32   `json:"current"`
	Revoked []uint64 `json:"revoked,omitempty"` // nodes, ascending

	// The node's own part: Ed25519 seed and certificate. Without them it uses generation 0.
	Private Secret `json:"private"`
	Cert    []byte `json:"cert,omitempty"`
}

// Check says what is wrong with keys that were stored or received.
func (k *KeySet) Check(cluster dataplane.ClusterID) error {
	if len(k.Generations) == 0 || len(k.Generations) > maxGenerations {
		return fmt.Errorf("keys of %d generations", len(k.Generations))
	}
	for i := range k.Generations {
		if i > 0 && k.Generations[i-1].Number >= k.Generations[i].Number {
			return errors.New("generations out of order")
		}
	}
	if !slices.IsSorted(k.Revoked) {
		return errors.New("revoked nodes out of order")
	}
	if len(k.Cert) == 0 {
		return nil
	}
	c, err := parseCert(k.Cert)
	switch {
	case err != nil:
		return err
	case c.Cluster != cluster:
		return errors.New("a certificate of another cluster")
	case c.Public != PublicKey(&k.Private):
		return errors.New("a certificate of another key")
	}
	return nil
}

const maxGenerations = 4 // that are accepted at once; a rotation needs two

// own is the generation that the node proves itself with, or nil if that isn't accepted any more.
func (k *KeySet) own() *Generation {
	if len(k.Cert) == 0 {
		return k.generation(0)
	}
	return k.generation(certGeneration(k.Cert))
}

func (k *KeySet) generation(number uint32) *Generation {
	for i := range k.Generations {
		if k.Generations[i].Number == number {
			return &k.Generations[i]
		}
	}
	return nil
}

// byKeyID returns the generation that a dialer names, or nil.
func (k *KeySet) byKeyID(id []byte) *Generation {
	for i := range k.Generations {
		if hmac.Equal(id, keyID((*[32]byte)(&k.Generations[i].Key))) {
			return &k.Generations[i]
		}
	}
	return nil
}

// Certificate returns the node's own certificate; nil: it has none.
func (k *KeySet) Certificate() *Certificate {
	c, err := parseCert(k.Cert)
	if err != nil {
		return nil
	}
	return c
}

// Outdated says whether the node needs a certificate of the current generation.
func (k *KeySet) Outdated() bool {
	return k.Current != 0 && (len(k.Cert) == 0 || certGeneration(k.Cert) != k.Current)
}

// admits says what speaks against a connection that was made by other keys.
func (k *KeySet) admits(p *Peer) error {
	switch _, revoked := slices.BinarySearch(k.Revoked, p.Node); {
	case revoked && p.Node != 0:
		return denied(fmt.Sprintf("%v: node %x was revoked", *p, p.Node))
	case k.generation(p.Generation) == nil:
		return denied(fmt.Sprintf("%v: its key is out of date", *p))
	case k.Secure && !p.Secure:
		return denied(fmt.Sprintf("%v: the cluster's connections are to be encrypted", *p))
	}
	return nil
}

// Ring is the KeySet of a process as it is now, shared by all its connections.
type Ring struct {
	now  atomic.Pointer[KeySet]
	mu   sync.Mutex // one replacement at a time; guards what follows
	file KeyFile
	seen []byte // certificate that was in the file last

	unsaved bool // the file lacks what the ring has
}

// KeyFile is where the processes of a node keep their keys together.
type KeyFile interface {
	Load() (*KeySet, error)
	Save(*KeySet) error
	// Locked calls f while no other process changes the file.
	Locked(f func() error) error
}

// NewRing returns a ring with its first keys. file may be nil.
func NewRing(k *KeySet, file KeyFile) *Ring {
	r := &Ring{file: file, seen: k.Cert}
	r.now.Store(k)
	return r
}

// Load returns the keys of now. They must not be changed.
func (r *Ring) Load() *KeySet { return r.now.Load() }

// newer says whether k is to replace old.
func (k *KeySet) newer(old *KeySet) bool {
	return k.Version > old.Version || k.Version == old.Version && old.Outdated() && !k.Outdated()
}

// Update takes over the cluster's part of newer keys, and has a new key pair certified by sign if
// the node needs one; what isn't newer is ignored. Connections that the new keys don't admit are
// closed when something comes over them. The file is replaced, too: what another process of the
// node has done already isn't done again. A file that can't be locked or read stays as it is, and
// the error says so; the ring itself is updated all the same: that a node was revoked counts at
// once. After an error the ring may still be outdated, or Unsaved.
func (r *Ring) Update(common *KeySet, sign func(public [32]byte) ([]byte, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return r.update(common, sign)
	}
	locked := false
	err := r.file.Locked(func() error {
		locked = true
		err := r.reload()
		uerr := r.update(common, sign)
		if err == nil && r.unsaved {
			now := r.now.Load()
			if err = r.file.Save(now); err == nil {
				r.seen, r.unsaved = now.Cert, false
			}
		}
		return cmp.Or(err, uerr)
	})
	if !locked {
		return errors.Join(err, r.update(common, sign))
	}
	return err
}

// Unsaved says whether the file lacks what an Update has put into the ring. Another Update, of the
// same keys, tries again; a process that starts anew before has the old ones.
func (r *Ring) Unsaved() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unsaved
}

func (r *Ring) update(common *KeySet, sign func(public [32]byte) ([]byte, error)) error {
	now := r.now.Load()
	k := *common
	k.Private, k.Cert = now.Private, now.Cert
	var err error
	if k.Outdated() {
		private := NewSecret()
		cert, serr := sign(PublicKey(&private))
		if err = serr; err == nil {
			k.Private, k.Cert = private, cert
		}
	}
	if k.newer(now) {
		r.now.Store(&k)
		r.unsaved = r.file != nil
	}
	return err
}

// Reload takes over the keys in the file if they are newer, or if a person has had the node
// authenticated again.
func (r *Ring) Reload() error {
	if r.file == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reload()
}

func (r *Ring) reload() error {
	stored, err := r.file.Load()
	if err != nil {
		return err
	}
	now := r.now.Load()
	replaced := !bytes.Equal(stored.Cert, r.seen)
	r.seen = stored.Cert
	switch {
	case stored.newer(now):
		r.now.Store(stored)
	case replaced && certGeneration(stored.Cert) >= certGeneration(now.Cert):
		r.now.Store(now.with(stored))
	}
	return nil
}

// with is k with the own part of keys that the node was given anew. Those have no version, as they
// don't tell which nodes are revoked; but if k doesn't know their generation, k is what is old.
func (k *KeySet) with(given *KeySet) *KeySet {
	old, own := k.generation(certGeneration(given.Cert)), given.own()
	if old == nil || own == nil || *old != *own {
		return given
	}
	both := *k
	both.Private, both.Cert = given.Private, given.Cert
	return &both
}

// A certificate says which roles a node has. It is valid as long as its generation is accepted and
// the node isn't revoked: no clock decides about it.
//
//	offset size field
//	     0    4 magic "PSNC"
//	     4    1 version (1)
//	     5    1 roles: bit 1<<role for each
//	     6    2 reserved, zero
//	     8    4 generation that signed it
//	    12    4 reserved, zero
//	    16   16 cluster id
//	    32    8 node id
//	    40   32 Ed25519 public key of the node
//	    72   64 Ed25519 signature, by the generation's key, of "pstorage 1 node certificate" and
//	            bytes 0-71
const (
	certMagic   = "PSNC"
	certVersion = 1
	certSigned  = 72
	certSize    = certSigned + ed25519.SignatureSize
	certContext = "pstorage 1 node certificate"
)

// Certificate is a decoded certificate.
type Certificate struct {
	Roles      uint8 // bits: 1<<role
	Generation uint32
	Cluster    dataplane.ClusterID
	Node       uint64
	Public     [32]byte
}

// RoleBit is the bit of a role in Certificate.Roles.
func RoleBit(r dataplane.Role) uint8 { return 1 << r }

// AllRoles are the bits of all roles.
const AllRoles uint8 = 1<<dataplane.RoleClient | 1<<dataplane.RoleCS | 1<<dataplane.RoleMDS |
	1<<dataplane.RoleAdmin | 1<<dataplane.RoleSupervisor

// SignCertificate makes a certificate with a generation's private key (an Ed25519 seed).
func SignCertificate(c *Certificate, private *Secret) []byte {
	b := make([]byte, certSigned, certSize)
	le := binary.LittleEndian
	copy(b, certMagic)
	b[4], b[5] = certVersion, c.Roles
	le.PutUint32(b[8:], c.Generation)
	copy(b[16:], c.Cluster[:])
	le.PutUint64(b[32:], c.Node)
	copy(b[40:], c.Public[:])
	return append(b, ed25519.Sign(ed25519.NewKeyFromSeed(private[:]),
		append([]byte(certContext), b...))...)
}

// PublicKey returns the Ed25519 public key of a seed.
func PublicKey(private *Secret) [32]byte {
	return [32]byte(ed25519.NewKeyFromSeed(private[:]).Public().(ed25519.PublicKey))
}

var errCert = errors.New("not a certificate of a node")

// parseCert decodes a certificate without checking its signature.
func parseCert(b []byte) (*Certificate, error) {
	le := binary.LittleEndian
	if len(b) != certSize || string(b[:4]) != certMagic || b[4] != certVersion ||
		b[6]|b[7] != 0 || le.Uint32(b[12:]) != 0 || b[5]&^AllRoles != 0 {
		return nil, errCert
	}
	return &Certificate{Roles: b[5], Generation: le.Uint32(b[8:]),
		Cluster: dataplane.ClusterID(b[16:32]), Node: le.Uint64(b[32:]),
		Public: [32]byte(b[40:72])}, nil
}

// certGeneration is the generation in a certificate that came from our own configuration.
func certGeneration(b []byte) uint32 {
	c, err := parseCert(b)
	if err != nil {
		return 0
	}
	return c.Generation
}

// checkCert decodes a certificate that an accepted generation of the cluster has signed.
func (k *KeySet) checkCert(b []byte, cluster dataplane.ClusterID) (*Certificate, error) {
	c, err := parseCert(b)
	if err != nil {
		return nil, err
	}
	g := k.generation(c.Generation)
	if c.Cluster != cluster || c.Node == 0 || g == nil || g.Number == 0 {
		return nil, errors.New("a certificate of another cluster or generation")
	}
	signed := append([]byte(certContext), b[:certSigned]...)
	if !ed25519.Verify(g.Sign[:], signed, b[certSigned:]) {
		return nil, errors.New("a certificate that the cluster didn't sign")
	}
	return c, nil
}
