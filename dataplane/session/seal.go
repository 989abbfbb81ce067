package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"pstorage/dataplane"
)

// What follows the handshake is protected in one of two ways, under keys of its own for each
// connection and direction:
//
//	dialer's frames   HKDF-Expand(session key, "pstorage 1 frames of the dialer", 32)
//	acceptor's frames HKDF-Expand(session key, "pstorage 1 frames of the acceptor", 32)
//
// Both use AES-256-GCM with a nonce of 4 zero bytes and a count of 8 bytes, which isn't sent: it
// begins at 0 and goes up by one for each use, so a record that was left out, repeated or moved
// doesn't open. After every 2^20 uses, so after at most 64 GiB, the key is replaced by
// HKDF-Expand(key, "pstorage 1 next key", 32): TLS 1.3 allows five times as much (RFC 8446, 5.5).
//
// Encrypted: the stream is cut in records.
//
//	offset size field
//	     0    4 n: bytes of data, 1 to 65536 (part of what is authenticated)
//	     4    n data, encrypted
//	   4+n   16 GCM tag
//
// The plain stream inside is the same as without encryption. For the reactor (Conn) records follow
// frames: header and checksums are one record, each part of the payload of up to 64 KiB is one.
//
// Tagged: frames are as in package dataplane, and their Tag is the first 8 bytes of the GCM tag
// over header and checksums, with tag and header CRC taken as zero. So a header, and through it
// what is done to which blocks, can't be forged, but payloads are only as safe as their CRC32C.

const (
	recordHead = 4
	gcmTag     = 16
	maxRecord  = dataplane.PartSize
	rekeyAfter = 1 << 20 // uses of a key
)

var (
	errSealed = &dataplane.FrameError{Reason: "encrypted record was changed, left out or repeated"}
	errTag    = &dataplane.FrameError{Reason: "wrong authentication tag"}
	errRecord = &dataplane.FrameError{Reason: "encrypted record of a wrong length"}
)

// direction protects one direction of a connection.
type direction struct {
	aead  cipher.AEAD
	key   [32]byte
	count uint64
	nonce [12]byte
	sum   [gcmTag]byte
}

// directions returns what protects the two directions, the own one first.
func directions(session *[32]byte, dialer bool) (send, receive *direction) {
	send = newDirection(session, "dialer")
	receive = newDirection(session, "acceptor")
	if !dialer {
		send, receive = receive, send
	}
	return send, receive
}

func newDirection(session *[32]byte, who string) *direction {
	d := &direction{key: [32]byte(expand(session[:], "pstorage 1 frames of the "+who))}
	d.setKey()
	return d
}

func expand(prk []byte, info string) []byte {
	out, err := hkdf.Expand(sha256.New, prk, info, 32)
	if err != nil {
		panic("session: HKDF: " + err.Error())
	}
	return out
}

func (d *direction) setKey() {
	block, err := aes.NewCipher(d.key[:])
	if err == nil {
		d.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic("session: AES-GCM: " + err.Error())
	}
}

// next moves on to the next nonce, and to the next key when this one was used often enough.
func (d *direction) next() {
	if d.count != 0 && d.count%rekeyAfter == 0 {
		d.key = [32]byte(expand(d.key[:], "pstorage 1 next key"))
		d.setKey()
	}
	binary.LittleEndian.PutUint64(d.nonce[4:], d.count)
	d.count++
}

// seal makes a record of plain, at most maxRecord bytes, in out, which has len(plain) +
// recordHead + gcmTag bytes. plain may be out[recordHead:] itself.
func (d *direction) seal(out, plain []byte) {
	d.next()
	binary.LittleEndian.PutUint32(out, uint32(len(plain)))
	d.aead.Seal(out[recordHead:recordHead], d.nonce[:], plain, out[:recordHead])
}

// open decrypts the record in (whole, as cut says) to dst, which has room for it or is
// in[recordHead:recordHead].
func (d *direction) open(dst, in []byte) ([]byte, error) {
	d.next()
	plain, err := d.aead.Open(dst, d.nonce[:], in[recordHead:], in[:recordHead])
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

// mac is the tag over p.
func (d *direction) mac(p []byte) uint64 {
	d.next()
	d.aead.Seal(d.sum[:0], d.nonce[:], nil, p)
	return binary.LittleEndian.Uint64(d.sum[:])
}

// cutRecord returns the first record of p, with least to most bytes of data; nil: it isn't
// complete. A wrong length is refused before its bytes are waited for.
func cutRecord(p []byte, least, most int) ([]byte, error) {
	if len(p) < recordHead {
		return nil, nil
	}
	n := binary.LittleEndian.Uint32(p)
	if n < uint32(least) || n > uint32(most) {
		return nil, errRecord
	}
	size := recordHead + int(n) + gcmTag
	if len(p) < size {
		return nil, nil
	}
	return p[:size], nil
}

var errStrip = errors.New("the peer doesn't encrypt, which this cluster demands")
