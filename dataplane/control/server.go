package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

// MaxConcurrent is how many requests of one connection are handled at once. The connection is not
// read further meanwhile.
const MaxConcurrent = 256

// Handler answers requests and is told when a peer is gone.
type Handler interface {
	// Handle answers one request; it is called on a goroutine of its own, so requests of one
	// connection may overtake each other. payload is the handler's to keep. ctx ends when the
	// connection is lost. reply is a message of this package (or a pointer to one), or nil. A
	// request that is repeated after a lost connection has the same reqID. Of an error the peer
	// gets its kind and text; if it has a method LeaderAddr() string, NotLeader and that address, to
	// which whoever serves the connections passes on those that ask for it (Relay).
	Handle(ctx context.Context, peer *Peer, reqID uint64, op dataplane.Opcode, payload []byte) (
		reply any, err error)
	// Gone is called once, after the last Handle of peer has returned.
	Gone(peer *Peer)
}

// Peer is an authenticated connection at the server's end. Its methods may be called by any
// goroutine.
type Peer struct {
	session.Peer
	nc  *session.NetConn
	out *sender
	// push stands for the connection of a peer made by SimPeer.
	push func(op dataplane.Opcode, payload []byte) error
}

// SimPeer returns a peer without a connection, for simulations: push gets what is pushed to it.
func SimPeer(who session.Peer, push func(op dataplane.Opcode, payload []byte) error) *Peer {
	return &Peer{Peer: who, push: push}
}

// Addr is the address of the peer, for people.
func (p *Peer) Addr() string {
	if p.nc == nil {
		return "nowhere"
	}
	return p.nc.RemoteAddr().String()
}

// Push sends a message that the peer didn't ask for. It doesn't wait: a peer that doesn't read
// gives Overloaded. No error is no promise that it arrives.
func (p *Peer) Push(op dataplane.Opcode, msg any) error {
	payload := Marshal(msg)
	if len(payload) > dataplane.MaxControlPayload {
		return tooLarge("push "+OpName(op), len(payload))
	}
	if p.push != nil {
		return p.push(op, payload)
	}
	h := dataplane.Header{Op: op, Flags: dataplane.FlagPush}
	return p.out.send(&h, payload, failIfFull)
}

// Close drops the connection; ServeConn returns.
func (p *Peer) Close() {
	p.out.close()
	p.nc.Close()
}

func tooLarge(op string, size int) error {
	return dataplane.E(op, dataplane.TooLarge, fmt.Errorf("message of %d bytes, at most %d fit",
		size, dataplane.MaxControlPayload))
}

// ServeConn serves one connection until it is lost, breaks the protocol, or ctx ends. All handlers
// have returned and the connection is closed when it returns. The error is nil when the peer
// closed in an orderly way or ctx ended.
func ServeConn(ctx context.Context, nc *session.NetConn, h Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()

	s := &served{peer: &Peer{Peer: nc.Peer(), nc: nc, out: newSender(nc)}, handler: h,
		slots: make(chan struct{}, MaxConcurrent)}
	err := s.read(ctx)
	orderly := err == io.EOF || ctx.Err() != nil
	cancel()
	s.peer.Close()
	s.running.Wait()
	<-s.peer.out.done
	h.Gone(s.peer)
	if orderly {
		return nil
	}
	var frame *dataplane.FrameError
	kind := dataplane.Closed
	if errors.As(err, &frame) {
		kind = dataplane.Malformed
	}
	return dataplane.E("serve "+s.peer.String()+" at "+s.peer.Addr(), kind, err)
}

// served is a connection while it is being served.
type served struct {
	peer    *Peer
	handler Handler
	slots   chan struct{} // one taken for each running handler
	running sync.WaitGroup
}

var (
	errNotRequest = &dataplane.FrameError{Reason: "reply or push from a client"}
	errSilent     = errors.New("nothing was heard from the peer for too long")
)

func (s *served) read(ctx context.Context) error {
	for {
		s.peer.nc.SetReadDeadline(time.Now().Add(idleLimit))
		var h dataplane.Header
		payload, err := s.peer.nc.ReadFrame(&h, nil)
		if err != nil {
			if isTimeout(err) {
				return errSilent
			}
			return err
		}
		if h.Flags&(dataplane.FlagReply|dataplane.FlagPush) != 0 {
			return errNotRequest
		}
		if h.Op == dataplane.OpPing {
			reply := h.Reply(dataplane.OK)
			if err := s.peer.out.send(&reply, nil, waitForRoom); err != nil {
				return err
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.running.Go(func() {
			s.handle(ctx, h, payload)
			<-s.slots
		})
	}
}

// isTimeout says whether err is a deadline that passed.
func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// handle runs one request and queues its reply.
func (s *served) handle(ctx context.Context, h dataplane.Header, payload []byte) {
	var reply any
	var err error
	if h.Op < dataplane.OpControlBase {
		err = dataplane.E(fmt.Sprintf("operation %d", h.Op), dataplane.NotSupported,
			errors.New("this is not a chunk server"))
	} else {
		reply, err = s.handler.Handle(ctx, s.peer, h.ReqID, h.Op, payload)
	}
	if err != nil && ctx.Err() != nil {
		return // the handler was stopped, which is no answer: the peer will ask again
	}
	var out []byte
	if err == nil && reply != nil {
		out = Marshal(reply)
		if len(out) > dataplane.MaxControlPayload {
			err = tooLarge("reply to "+OpName(h.Op), len(out))
		}
	}
	status := dataplane.OK
	if err != nil {
		var e ErrorReply
		status, e = errorReply(err)
		out = Marshal(e)
	}
	r := h.Reply(status)
	r.Offset = 0 // of the range asked for, in a data frame
	// An error means that the connection is lost: here, too, the peer will ask again.
	_ = s.peer.out.send(&r, out, waitForRoom)
}

const maxErrorText = 4096 // bytes of an error that travel

// errorReply is how an error travels: the kind as status, the rest as text.
func errorReply(err error) (dataplane.Kind, ErrorReply) {
	var leader interface{ LeaderAddr() string }
	if errors.As(err, &leader) {
		addr := leader.LeaderAddr()
		return dataplane.NotLeader, ErrorReply{Leader: addr, Relays: addr != ""}
	}
	kind, text := dataplane.KindOf(err), err.Error()
	// The kind's own words are left out where the receiver will say them.
	if e, ok := err.(*dataplane.Error); ok {
		text = e.Op
		if e.Err != nil {
			if text != "" {
				text += ": "
			}
			text += e.Err.Error()
		}
	}
	if kind == dataplane.OK { // an *Error that says OK is still an error
		kind = dataplane.Internal
	}
	return kind, ErrorReply{Message: text[:min(len(text), maxErrorText)]}
}
