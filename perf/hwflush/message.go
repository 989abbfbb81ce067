package hwflush

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A message, either way, over TCP. Little endian.
//
//	bytes    field
//	0-3      magic "HWFC"
//	4        version: 1
//	5        type
//	6        length of the name, 0 to 64
//	7        reserved, 0
//	8-23     session
//	24-31    number
//	32-39    slots, or of a verdict: how many records were lost
//	40-47    window
//	48-111   name of the client, filled up with zeros
//	112-123  reserved, 0
//	124-127  CRC32C of all bytes before
const (
	messageSize    = 128
	messageMagic   = "HWFC"
	messageVersion = 1
	maxName        = 64
)

type messageType uint8

const (
	// Of clients.
	msgBegin   messageType = 1 // a run of this session begins; answered by msgOK
	msgReport  messageType = 2 // the disk acknowledged all up to number; answered by msgOK
	msgAsk     messageType = 3 // what is known of this name? answered by msgState
	msgVerdict messageType = 4 // what a client found; answered by msgOK

	// Of servers.
	msgOK      messageType = 16 // number is known
	msgState   messageType = 17 // session, last number, slots, window
	msgRefused messageType = 18 // number is the reason
)

// Reasons of msgRefused.
const (
	refusedUnknown = 1 // no run of this name is known
	refusedFull    = 2 // the server has too many names
	refusedBusy    = 3 // a client of this name is connected
)

var reasons = map[uint64]string{
	refusedUnknown: "the server knows nothing of this client: was it restarted, or is the name " +
		"another one?",
	refusedFull: "the server knows too many clients already",
	refusedBusy: "another client of this name is connected",
}

type message struct {
	kind    messageType
	session Session
	number  uint64
	slots   uint64
	window  uint64
	name    string
}

var errMessage = errors.New("not a message of a hwflush-check")

// put encodes m to b, of messageSize bytes.
func (m *message) put(b []byte) {
	if len(m.name) > maxName || len(b) != messageSize {
		panic(fmt.Sprintf("hwflush: name of %d bytes, buffer of %d", len(m.name), len(b)))
	}
	le := binary.LittleEndian
	clear(b)
	copy(b, messageMagic)
	b[4], b[5], b[6] = messageVersion, byte(m.kind), byte(len(m.name))
	copy(b[8:], m.session[:])
	le.PutUint64(b[24:], m.number)
	le.PutUint64(b[32:], m.slots)
	le.PutUint64(b[40:], m.window)
	copy(b[48:], m.name)
	le.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
}

// parseMessage decodes b.
func parseMessage(b []byte) (m message, err error) {
	le := binary.LittleEndian
	if len(b) != messageSize || string(b[:4]) != messageMagic ||
		le.Uint32(b[124:]) != crc32.Checksum(b[:124], castagnoli) {
		return m, errMessage
	}
	if b[4] != messageVersion {
		return m, fmt.Errorf("version %d of the protocol, %d is known: use the same program on "+
			"both sides", b[4], messageVersion)
	}
	n := int(b[6])
	if n > maxName {
		return m, errMessage
	}
	m = message{kind: messageType(b[5]), number: le.Uint64(b[24:]), slots: le.Uint64(b[32:]),
		window: le.Uint64(b[40:]), name: string(b[48 : 48+n])}
	copy(m.session[:], b[8:])
	return m, nil
}

func (m *message) send(w io.Writer) error {
	var b [messageSize]byte
	m.put(b[:])
	_, err := w.Write(b[:])
	return err
}

func receive(r io.Reader) (message, error) {
	var b [messageSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return message{}, err
	}
	return parseMessage(b[:])
}

// expect receives a message of one kind.
func expect(r io.Reader, kind messageType) (message, error) {
	m, err := receive(r)
	switch {
	case err != nil:
		return m, err
	case m.kind == msgRefused && reasons[m.number] != "":
		return m, errors.New(reasons[m.number])
	case m.kind != kind:
		return m, errMessage
	}
	return m, nil
}
