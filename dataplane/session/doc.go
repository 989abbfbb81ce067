// Package session makes connections trustworthy: both ends prove that they know the cluster's key
// before any other byte is parsed. Then it carries frames (package dataplane), in two flavours:
// Conn for the reactor (callbacks, no allocation per frame) and NetConn for ordinary blocking code
// (metadata servers, command line).
//
// # The key handshake
//
// Four messages, strictly in turn, each at most MaxMessage (640) bytes, little endian:
//
//	dialer                      acceptor
//	  hello     ----------------->     versions, features, cluster, key id, nonce
//	            <-----------------  challenge     features, nonce
//	  proof     ----------------->     who I am, MAC
//	            <-----------------  welcome       who I am, MAC
//
// Every message begins with:
//
//	offset size field
//	     0    4 magic "PSHK"
//	     4    1 type: 1 hello, 2 challenge, 3 proof, 4 welcome, 15 refusal
//	     5    1 version: in a hello the highest that the dialer speaks, then the one chosen;
//	           the key that the hello names fixes it: a generation with certificates is used with
//	           version 2, the key of a cluster without with version 1
//	     6    2 length of the body that follows (at most 632)
//
// hello (body of 64 bytes):
//
//	 8    4 features offered
//	12    1 lowest version that the dialer speaks
//	13    3 reserved, zero
//	16   16 cluster id
//	32    8 key id: HKDF-SHA256(key, no salt, "pstorage key id")
//	40   32 nonce
//
// challenge (body of 40 bytes, in version 2 of 72):
//
//	 8    4 features that are in force
//	12    4 reserved, zero
//	16   32 nonce
//	48   32 version 2: X25519 public key, made for this connection
//
// proof and welcome, version 1 (body of 44 bytes + name):
//
//	   8    8 id: client id, chunk server id, ... (see Credentials)
//	  16    1 role
//	  17    1 service: what the dialer wants; repeated in the welcome
//	  18    1 length n of the name, at most 255
//	  19    1 reserved, zero
//	  20    n name of the host, for people
//	20+n   32 MAC
//
// proof and welcome, version 2 (body of 276 bytes + name in a proof, 244 + name in a welcome); m is
// 52 in a proof and 20 in a welcome, which has no X25519 key:
//
//	    8   12 as above
//	   20   32 only in a proof: X25519 public key, made for this connection
//	    m    n name of the host, for people
//	  m+n  136 certificate: see keys.go
//	m+136+n 64 Ed25519 signature, by the key in the certificate
//	m+200+n 32 MAC
//
// refusal (body of 4 bytes):
//
//	 8    2 kind: WrongCluster, NotSupported (no common version or protection), NotReady,
//	        Overloaded, or Denied for all else
//	10    2 reserved, zero
//
// Features: bit 28 encryption, bit 29 (of an offer only) it is wanted, bit 30 authentication tags;
// the lower ones are the users'. See seal.go for what follows the handshake.
//
// The MAC is HMAC-SHA256 under a key of its own for each direction, over SHA-256 of all bytes of
// the handshake so far, up to the MAC itself. So it covers versions, features, cluster, both
// nonces, and the sender's role, id, name and service; a recorded handshake is worthless because
// the other side's nonce is new, and a reflected one because the directions have different keys:
//
//	PRK            = HKDF-Extract(SHA-256, cluster key, dialer nonce + acceptor nonce)
//	dialer's key   = HKDF-Expand(PRK, "pstorage 1 dialer proof", 32)
//	acceptor's key = HKDF-Expand(PRK, "pstorage 1 acceptor proof", 32)
//	session key    = HKDF-Expand(PRK, "pstorage 1 session" + hash of the whole handshake, 32)
//
// In version 2 the labels have a 2 in place of the 1, and when the proof was made or checked
// PRK = HKDF-Extract(SHA-256, X25519 secret, PRK) goes on in place of the first: who learns a key
// later can't read what was said. The signature is over "pstorage 2 dialer signature", or
// "pstorage 2 acceptor signature", and SHA-256 of all bytes of the handshake so far, up to the
// signature itself. The MAC is checked before certificate and signature.
//
// Whoever can't prove the key learns one nonce and one refusal, and is closed. The cluster id is
// compared before anything else is answered. A handshake must end within HandshakeTime. In version
// 1 all nodes of a cluster hold the same key: role and id are what the peer says, and can't be
// changed by others on the way, but a holder of the key could lie about its own. In version 2 the
// role is one of those in the certificate; the id is still what the peer says.
//
// # The password handshake
//
// On the same port; its magic is "PSPW". See password.go.
package session
