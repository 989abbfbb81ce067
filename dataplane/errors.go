package dataplane

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// Kind says what sort of failure an error is. It is a closed set that travels on the wire in the
// status field: append, never reorder.
type Kind uint16

// The kinds.
const (
	OK           Kind = 0
	StaleEpoch   Kind = 1  // asker's epoch is old: fetch the map again
	UnknownChunk Kind = 2  // this server isn't a member of the chunk
	NotHead      Kind = 3  // writes go to the chunk's first member
	NotReady     Kind = 4  // chunk is being settled or reconfigured: try again
	NoLease      Kind = 5  // server has no valid lease from the metadata servers
	BadCRC       Kind = 6  // data doesn't match its checksum
	Malformed    Kind = 7  // the frame or message breaks the protocol
	IOError      Kind = 8  // disk failed
	NoSpace      Kind = 9  // no space; writers wait
	Denied       Kind = 10 // not authenticated or not allowed
	OutOfBounds  Kind = 11 // range outside the chunk or file
	BelowMinimum Kind = 12 // too few replicas to write; writers wait
	Overloaded   Kind = 13 // queue full: try again
	Closed       Kind = 14 // connection or object closed
	TimedOut     Kind = 15
	NotFound     Kind = 16
	Exists       Kind = 17
	NotDir       Kind = 18
	IsDir        Kind = 19
	NotEmpty     Kind = 20
	Invalid      Kind = 21 // arguments make no sense
	NotLeader    Kind = 22 // ask the leader named in the message
	Conflict     Kind = 23 // compare-and-set lost
	NotSupported Kind = 24
	NameTooLong  Kind = 25
	Unreachable  Kind = 26 // no connection to the peer
	WrongCluster Kind = 27
	Fenced       Kind = 28 // this client or server was fenced
	TooLarge     Kind = 29
	Internal     Kind = 30
	NoAttribute  Kind = 31 // no such extended attribute
	LeaseHeld    Kind = 32 // another client has the right to write the file
	kindEnd      Kind = 33
)

type kindRow struct {
	name  string
	errno syscall.Errno
	retry bool // may the client library try again by itself?
}

// kinds is the one table of what a Kind is called, what errno a file system user sees, and
// whether the client library retries by itself.
var kinds = [kindEnd]kindRow{
	OK:           {"ok", 0, false},
	StaleEpoch:   {"stale epoch", syscall.EIO, true},
	UnknownChunk: {"unknown chunk", syscall.EIO, true},
	NotHead:      {"not the head of the chunk", syscall.EIO, true},
	NotReady:     {"chunk not ready", syscall.EAGAIN, true},
	NoLease:      {"no valid lease", syscall.EIO, true},
	BadCRC:       {"checksum mismatch", syscall.EIO, true},
	Malformed:    {"malformed message", syscall.EPROTO, false},
	IOError:      {"I/O error", syscall.EIO, true},
	NoSpace:      {"no space", syscall.ENOSPC, true},
	Denied:       {"permission denied", syscall.EACCES, false},
	OutOfBounds:  {"out of bounds", syscall.EINVAL, false},
	BelowMinimum: {"below the minimum of replicas", syscall.EIO, true},
	Overloaded:   {"overloaded", syscall.EAGAIN, true},
	Closed:       {"closed", syscall.ESHUTDOWN, true},
	TimedOut:     {"timed out", syscall.ETIMEDOUT, true},
	NotFound:     {"not found", syscall.ENOENT, false},
	Exists:       {"already exists", syscall.EEXIST, false},
	NotDir:       {"not a directory", syscall.ENOTDIR, false},
	IsDir:        {"is a directory", syscall.EISDIR, false},
	NotEmpty:     {"directory not empty", syscall.ENOTEMPTY, false},
	Invalid:      {"invalid argument", syscall.EINVAL, false},
	NotLeader:    {"not the leader", syscall.EAGAIN, true},
	Conflict:     {"changed by another", syscall.EAGAIN, true},
	NotSupported: {"not supported", syscall.EOPNOTSUPP, false},
	NameTooLong:  {"name too long", syscall.ENAMETOOLONG, false},
	Unreachable:  {"unreachable", syscall.EHOSTUNREACH, true},
	WrongCluster: {"belongs to another cluster", syscall.EACCES, false},
	Fenced:       {"fenced", syscall.EROFS, false},
	TooLarge:     {"too large", syscall.EFBIG, false},
	Internal:     {"internal error", syscall.EIO, false},
	NoAttribute:  {"no such attribute", syscall.ENODATA, false},
	LeaseHeld:    {"being written by another client", syscall.EBUSY, false},
}

// Valid says whether k is a kind that this version knows.
func (k Kind) Valid() bool { return k < kindEnd }

func (k Kind) String() string {
	if k.Valid() {
		return kinds[k].name
	}
	return fmt.Sprintf("kind(%d)", uint16(k))
}

// Errno returns the errno that a file system user sees for k; EIO for an unknown kind.
func (k Kind) Errno() syscall.Errno {
	if k.Valid() {
		return kinds[k].errno
	}
	return syscall.EIO
}

// Retry says whether the client library may try again by itself.
func (k Kind) Retry() bool { return k.Valid() && kinds[k].retry }

// Error is the one error type of pstorage: what was tried, what sort of failure it is, and why.
type Error struct {
	Op   string // what was tried, on what, where: "read chunk 5.1 at 127.0.0.1:3001"
	Kind Kind
	Err  error // the cause, or nil
}

// E makes an *Error. A nil err is allowed.
func E(op string, kind Kind, err error) *Error { return &Error{Op: op, Kind: kind, Err: err} }

func (e *Error) Error() string {
	s := e.Op
	if s != "" {
		s += ": "
	}
	s += e.Kind.String()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Reason is the text of err without the kinds of errors that have a cause: for people, whom the
// cause tells more.
func Reason(err error) string {
	text := err.Error()
	for e := err; e != nil; e = errors.Unwrap(e) {
		if d, ok := e.(*Error); ok && d.Err != nil {
			text = strings.Replace(text, d.Kind.String()+": "+d.Err.Error(), d.Err.Error(), 1)
		}
	}
	return text
}

// KindOf returns the kind of the outermost *Error in err's chain; OK for nil, Internal for a
// foreign error.
func KindOf(err error) Kind {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}
