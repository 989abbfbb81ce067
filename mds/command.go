package mds

import (
	"encoding/binary"
	"fmt"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// A log entry carries one or more commands, applied in order:
//
//	offset size field
//	     0    1 version (1)
//	     1    3 reserved, zero
//	     4    4 CRC32C of everything behind
//	     8    8 time of the leader, ns since 1970
//	    16    4 number of commands
//	    20      commands: op u8, length u32, body (fields in the order of its put method)
//
// A server that meets a version or an op it doesn't know must stop: to go on would mean to
// disagree with the others. New fields go to the end of a body and are optional when read; a server
// that doesn't know of them skips them, so one that decides what the command does needs an op of
// its own.
const (
	entryVersion = 1
	entryHeader  = 20
	// MaxEntry bounds a log entry in bytes.
	MaxEntry = 4 << 20
)

// The ops of commands. They are in the log for ever: never renumber.
const (
	opInit        = 1
	opCreate      = 2
	opUnlink      = 3
	opRename      = 4
	opSetAttr     = 5
	opGrow        = 6
	opSetXattr    = 7
	opAllocate    = 8
	opReconfigure = 9
	opRegisterCS  = 10
	opMarkCS      = 11
	opAddEvent    = 12
	opSetConfig   = 13
	opReap        = 14
	opReplace     = 15
	opRenameKeep  = 16
	opLease       = 20
)

// command is one change of the state.
type command interface {
	op() uint8
	put(e *encoder)
	get(d *decoder)
	// from returns who asked, for answering retries; zero if it doesn't matter.
	from() origin
	apply(s *State, r *Result)
}

// origin names a request: the peer and its request id. A zero Peer is not remembered.
type origin struct{ Peer, Req uint64 }

func (o origin) from() origin { return o }

func (o *origin) put(e *encoder) { e.u64(o.Peer); e.u64(o.Req) }
func (o *origin) get(d *decoder) { o.Peer, o.Req = d.u64(), d.u64() }

// Result is what a command did. Only the leader looks at it.
type Result struct {
	Kind  dataplane.Kind
	Msg   string
	Attr  control.Attr
	Rec   Record         // Reconfigure, also when it lost: the record as it is
	CS    dataplane.CSID // RegisterCS
	More  bool           // too much for one command: send the same one again
	Freed []freedChunk   // to be forgotten by their servers
	Lease fileLease      // Lease, also when it failed: as it is
}

// freedChunk is a chunk that no longer exists and the servers that held it.
type freedChunk struct {
	id       dataplane.ChunkID
	replicas [dataplane.MaxReplicas]Replica
}

// fail sets the outcome.
func (r *Result) fail(kind dataplane.Kind, format string, args ...any) {
	r.Kind, r.Msg = kind, fmt.Sprintf(format, args...)
}

// err returns the outcome as an error, nil for OK.
func (r *Result) err(op string) error {
	if r.Kind == dataplane.OK {
		return nil
	}
	if r.Msg == "" {
		return dataplane.E(op, r.Kind, nil)
	}
	return dataplane.E(op, r.Kind, fmt.Errorf("%s", r.Msg))
}

// newCommand returns an empty command of the op, or nil.
func newCommand(op uint8) command {
	switch op {
	case opInit:
		return &cmdInit{}
	case opCreate:
		return &cmdCreate{}
	case opUnlink:
		return &cmdUnlink{}
	case opRename, opRenameKeep:
		return &cmdRename{}
	case opSetAttr:
		return &cmdSetAttr{}
	case opGrow:
		return &cmdGrow{}
	case opSetXattr:
		return &cmdSetXattr{}
	case opAllocate:
		return &cmdAllocate{}
	case opReconfigure, opReplace:
		return &cmdReconfigure{}
	case opRegisterCS:
		return &cmdRegisterCS{}
	case opMarkCS:
		return &cmdMarkCS{}
	case opAddEvent:
		return &cmdAddEvent{}
	case opSetConfig:
		return &cmdSetConfig{}
	case opReap:
		return &cmdReap{}
	case opLease:
		return &cmdLease{}
	}
	return nil
}

// beginEntry starts a log entry in buf.
func beginEntry(buf []byte) []byte {
	return append(buf[:0], make([]byte, entryHeader)...)
}

// appendCommand adds a command to a log entry.
func appendCommand(entry []byte, c command) []byte {
	e := encoder{b: entry}
	e.u8(c.op())
	e.u32(0)
	at := len(e.b)
	c.put(&e)
	binary.LittleEndian.PutUint32(e.b[at-4:], uint32(len(e.b)-at))
	return e.b
}

// finishEntry fills in the header.
func finishEntry(entry []byte, nowNs int64, commands int) []byte {
	le := binary.LittleEndian
	entry[0] = entryVersion
	le.PutUint64(entry[8:], uint64(nowNs))
	le.PutUint32(entry[16:], uint32(commands))
	le.PutUint32(entry[4:], dataplane.CRC(entry[8:]))
	return entry
}

// encodeEntry makes a log entry of commands.
func encodeEntry(nowNs int64, commands ...command) []byte {
	b := beginEntry(nil)
	for _, c := range commands {
		b = appendCommand(b, c)
	}
	return finishEntry(b, nowNs, len(commands))
}

// decodeEntry reads a log entry. Nothing in it is trusted.
func decodeEntry(b []byte) (nowNs int64, commands []command, err error) {
	le := binary.LittleEndian
	switch {
	case len(b) < entryHeader || len(b) > MaxEntry:
		return 0, nil, errCorrupt("log entry of %d bytes", len(b))
	case le.Uint32(b[4:]) != dataplane.CRC(b[8:]):
		return 0, nil, errCorrupt("checksum of a log entry")
	case b[0] != entryVersion || b[1]|b[2]|b[3] != 0:
		return 0, nil, dataplane.E("read log entry", dataplane.NotSupported,
			fmt.Errorf("version %d is newer than this program", b[0]))
	}
	d := decoder{b: b[8:]}
	nowNs = d.i64()
	n := d.count(5)
	commands = make([]command, 0, n)
	for range n {
		op := d.u8()
		body := decoder{b: d.raw()}
		c := newCommand(op)
		if d.bad || c == nil {
			return 0, nil, dataplane.E("read log entry", dataplane.NotSupported,
				fmt.Errorf("command %d is unknown to this program", op))
		}
		if c.get(&body); body.bad {
			return 0, nil, errCorrupt("command %d in a log entry", op)
		}
		commands = append(commands, c)
	}
	if !d.ok() {
		return 0, nil, errCorrupt("length of a log entry")
	}
	return nowNs, commands, nil
}

// Apply applies one log entry and returns a result per command. An error means that this server
// can't go on (damage, or a newer format); nothing was changed then.
func (s *State) Apply(entry []byte) ([]Result, error) {
	nowNs, commands, err := decodeEntry(entry)
	if err != nil {
		return nil, err
	}
	results := make([]Result, len(commands))
	for i, c := range commands {
		s.applyOne(nowNs, c, &results[i])
	}
	return results, nil
}

// applyOne applies a command unless it was applied before, for the same request.
func (s *State) applyOne(nowNs int64, c command, r *Result) {
	s.nowNs = max(s.nowNs, nowNs)
	o := c.from()
	key := dedupeKey{o.Peer, o.Req}
	if o.Peer != 0 {
		if e, ok := s.seen[key]; ok {
			r.Kind, r.Msg = e.kind, e.msg
			if f := s.files.get(e.file); e.file != 0 && f != nil {
				r.Attr = s.attr(f)
			} else {
				r.Attr.File = e.file
			}
			return
		}
	}
	c.apply(s, r)
	if o.Peer != 0 && !r.More {
		s.remember(dedupeEntry{key: key, kind: r.Kind, msg: r.Msg, file: r.Attr.File})
	}
}
