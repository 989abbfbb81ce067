package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// negotiation is the handshake of one connection, as a pure state machine: bytes in, bytes out.
type negotiation struct {
	exports    []*export
	greeted    bool // the client's flags have come
	noZeroes   bool
	structured bool
	options    int
	metaExport *export // for which base:allocation was chosen
	chosen     *export // the handshake is over
	wants      *export // whose size the next option waits for
	fresh      *export // whose size was asked for in this handshake
}

var (
	errTooMany  = errors.New("the handshake has too many options")
	errAborted  = errors.New("the client ended the handshake")
	errNoExport = errors.New("the client asked for an export that doesn't exist")
	errOldStyle = errors.New("the client doesn't speak the fixed newstyle handshake")
	errOption   = errors.New("an option doesn't begin with its magic number, or is too long")
)

// greeting is what a server says first.
func greeting() []byte {
	p := binary.BigEndian.AppendUint64(nil, magicGreeting)
	p = binary.BigEndian.AppendUint64(p, magicOption)
	return binary.BigEndian.AppendUint16(p, flagFixedNewstyle|flagNoZeroes)
}

// step takes what it can of p. It returns how many bytes that were and what is to be sent. After an
// error the connection is closed, after out is sent. n.chosen is set when the handshake is over;
// n.wants if it goes on only after know.
func (n *negotiation) step(p []byte) (used int, out []byte, err error) {
	if !n.greeted {
		if len(p) < 4 {
			return 0, nil, nil
		}
		flags := binary.BigEndian.Uint32(p)
		if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 || flags&flagFixedNewstyle == 0 {
			return 4, nil, errOldStyle
		}
		n.greeted, n.noZeroes = true, flags&flagNoZeroes != 0
		used = 4
	}
	for n.chosen == nil {
		rest := p[used:]
		if len(rest) < optionSize {
			return used, out, nil
		}
		size := binary.BigEndian.Uint32(rest[12:])
		if binary.BigEndian.Uint64(rest) != magicOption || size > maxOption {
			return used, out, errOption
		}
		if len(rest) < optionSize+int(size) {
			return used, out, nil
		}
		opt, data := binary.BigEndian.Uint32(rest[8:]), rest[optionSize:optionSize+int(size)]
		if e := n.sized(opt, data); e != n.fresh && e != nil {
			n.wants = e
			return used, out, nil
		}
		if n.options++; n.options > maxOptions {
			return used, out, errTooMany
		}
		used += optionSize + int(size)
		if out, err = n.option(out, opt, data); err != nil {
			return used, out, err
		}
	}
	return used, out, nil
}

// know says that the size of e is up to date.
func (n *negotiation) know(e *export) { n.wants, n.fresh = nil, e }

// sized is the export whose size the answer to an option tells; nil: none.
func (n *negotiation) sized(opt uint32, data []byte) *export {
	switch opt {
	case optExportName:
		return n.find(string(data))
	case optInfo, optGo:
		if name, _, ok := takeString(data); ok {
			return n.find(name)
		}
	}
	return nil
}

// option handles one option and appends its replies.
func (n *negotiation) option(out []byte, opt uint32, data []byte) ([]byte, error) {
	switch opt {
	case optExportName:
		e := n.find(string(data))
		if e == nil {
			return out, errNoExport // there is no way to say so
		}
		out = binary.BigEndian.AppendUint64(out, e.size())
		out = binary.BigEndian.AppendUint16(out, e.flags(n.structured))
		if !n.noZeroes {
			out = append(out, make([]byte, 124)...)
		}
		n.choose(e)
	case optAbort:
		return appendReply(out, opt, repAck, nil), errAborted
	case optList:
		if len(data) != 0 {
			return refuse(out, opt, repErrInvalid, "LIST has no data"), nil
		}
		for _, e := range n.exports {
			d := binary.BigEndian.AppendUint32(nil, uint32(len(e.name)))
			out = appendReply(out, opt, repServer, append(d, e.name...))
		}
		out = appendReply(out, opt, repAck, nil)
	case optInfo, optGo:
		return n.info(out, opt, data), nil
	case optStructuredReply:
		if len(data) != 0 {
			return refuse(out, opt, repErrInvalid, "STRUCTURED_REPLY has no data"), nil
		}
		n.structured = true
		out = appendReply(out, opt, repAck, nil)
	case optListMeta, optSetMeta:
		return n.meta(out, opt, data), nil
	case optStartTLS:
		return refuse(out, opt, repErrPolicy, "there is no TLS here"), nil
	default:
		return refuse(out, opt, repErrUnsup, ""), nil
	}
	return out, nil
}

func refuse(out []byte, opt, typ uint32, why string) []byte {
	return appendReply(out, opt, typ, []byte(why))
}

// noExport says so; a string of the protocol has at most maxName bytes, so name isn't quoted whole.
func noExport(name string) string { return fmt.Sprintf("there is no export %.60q", name) }

// find returns the export of a name; the empty name is the first one.
func (n *negotiation) find(name string) *export {
	for i, e := range n.exports {
		if e.name == name || name == "" && i == 0 {
			return e
		}
	}
	return nil
}

func (n *negotiation) choose(e *export) {
	n.chosen = e
	if n.metaExport != e {
		n.metaExport = nil
	}
}

// info answers INFO and GO: name length u32, name, count u16, count times what is asked for.
func (n *negotiation) info(out []byte, opt uint32, data []byte) []byte {
	name, rest, ok := takeString(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		return refuse(out, opt, repErrInvalid, "the option is malformed")
	}
	e := n.find(name)
	if e == nil {
		return refuse(out, opt, repErrUnknown, noExport(name))
	}
	for rest = rest[2:]; len(rest) > 0; rest = rest[2:] {
		var d []byte
		switch typ := binary.BigEndian.Uint16(rest); typ {
		case infoName:
			d = append(binary.BigEndian.AppendUint16(nil, typ), e.name...)
		case infoDescription:
			d = append(binary.BigEndian.AppendUint16(nil, typ), e.description...)
		case infoBlockSize:
			d = binary.BigEndian.AppendUint16(nil, typ)
			d = binary.BigEndian.AppendUint32(d, 1)
			d = binary.BigEndian.AppendUint32(d, 4096)
			d = binary.BigEndian.AppendUint32(d, bufferSize)
		default:
			continue
		}
		out = appendReply(out, opt, repInfo, d)
	}
	d := binary.BigEndian.AppendUint16(nil, infoExport)
	d = binary.BigEndian.AppendUint64(d, e.size())
	d = binary.BigEndian.AppendUint16(d, e.flags(n.structured))
	out = appendReply(out, opt, repInfo, d)
	if opt == optGo {
		n.choose(e)
	}
	return appendReply(out, opt, repAck, nil)
}

// meta answers LIST_META_CONTEXT and SET_META_CONTEXT: name length u32, name, count u32, count
// times length u32 and query. LIST without queries asks for all there are; SET chooses none by it.
func (n *negotiation) meta(out []byte, opt uint32, data []byte) []byte {
	name, rest, ok := takeString(data)
	if !ok || len(rest) < 4 {
		return refuse(out, opt, repErrInvalid, "the option is malformed")
	}
	if !n.structured {
		return refuse(out, opt, repErrInvalid, "ask for STRUCTURED_REPLY first")
	}
	count := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	wanted := count == 0 && opt == optListMeta
	for ; count > 0; count-- {
		var query string
		if query, rest, ok = takeString(rest); !ok {
			return refuse(out, opt, repErrInvalid, "the option is malformed")
		}
		wanted = wanted || query == metaAllocation || query == "base:" && opt == optListMeta
	}
	if len(rest) != 0 {
		return refuse(out, opt, repErrInvalid, "the option is malformed")
	}
	e := n.find(name)
	if e == nil {
		return refuse(out, opt, repErrUnknown, noExport(name))
	}
	if opt == optSetMeta {
		n.metaExport = nil
	}
	if wanted {
		id := uint32(0)
		if opt == optSetMeta {
			n.metaExport, id = e, metaAllocationID
		}
		d := binary.BigEndian.AppendUint32(nil, id)
		out = appendReply(out, opt, repMetaContext, append(d, metaAllocation...))
	}
	return appendReply(out, opt, repAck, nil)
}

// takeString takes a length u32 and so many bytes.
func takeString(p []byte) (s string, rest []byte, ok bool) {
	if len(p) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(p)
	if n > maxName || int(n) > len(p)-4 {
		return "", nil, false
	}
	return string(p[4 : 4+n]), p[4+n:], true
}
