package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"pstorage/dataplane/client"
	"pstorage/uring"
)

// Export is a file served as a device.
type Export struct {
	// Name is what clients ask for; at most 4096 bytes, unique in a server. The first export is
	// also what a client gets that asks for no name.
	Name string
	// Description is for people.
	Description string
	File        *client.File
	ReadOnly    bool
}

// Options of a Server.
type Options struct {
	Client  *client.Client
	Exports []Export
	Log     *slog.Logger // nil: slog.Default()
}

// refreshTime bounds how long a new connection waits for the size of its file; then it gets the one
// last heard of.
const refreshTime = 5 * time.Second

// Server serves exports. Its state belongs to the loop of its client.
type Server struct {
	env  uring.Env
	pool *uring.Pool
	post func(func())
	gone <-chan struct{} // the loop has ended
	log  *slog.Logger

	exports []*export
	listen  func(addr string, attach func(uring.Conn) uring.ConnHandler) (string, func(), error)
	ctx     context.Context // for questions to the metadata servers
	stop    context.CancelFunc

	closers []func()
	conns   map[*conn]struct{}
	free    *op
	big     int         // bytes of payloads outside of the pool
	look    uring.Timer // armed while connections wait for memory
	closing bool
	idle    chan struct{} // closed when closing and no connection is left
	served  uint64        // connections so far
}

// device is what an export needs of a file. Submit, Cancel, OpenForWrite and CloseForWrite are
// called on the loop's thread, the others on any; Size may be called on both. Neither Submit nor
// Cancel calls op.Done.
type device interface {
	Submit(op *client.Op)
	Cancel(op *client.Op)
	// OpenForWrite begins a use that may write, by the right that it gives; CloseForWrite ends it.
	OpenForWrite() client.Right
	CloseForWrite()
	Size() uint64
	Refresh(ctx context.Context) error
	Resize(ctx context.Context, right client.Right, size uint64) error
	Seek(ctx context.Context, off int64, hole bool) (int64, error)
}

// export is an Export in use.
type export struct {
	name, description string
	dev               device
	readOnly          bool
	resizes           []*op // the first one is under way, the others wait
}

func (e *export) size() uint64 { return e.dev.Size() }

func (e *export) flags(structured bool) uint16 {
	f := uint16(hasFlags | sendFlush | sendFUA | canMultiConn | sendCache)
	if structured {
		f |= sendDF
	}
	if e.readOnly {
		return f | readOnly
	}
	return f | sendTrim | sendWriteZeroes | sendFastZero | sendResize
}

// fileDevice is a device on a file of a cluster.
type fileDevice struct {
	eng  *client.Engine
	file *client.File
}

func (d fileDevice) Submit(op *client.Op) {
	op.File = d.file
	d.eng.Submit(op)
}

func (d fileDevice) Cancel(op *client.Op) { d.eng.Cancel(op) }

func (d fileDevice) OpenForWrite() client.Right { return d.eng.OpenForWrite(d.file) }

func (d fileDevice) CloseForWrite() { d.eng.CloseForWrite(d.file) }

func (d fileDevice) Size() uint64 { return d.file.Size() }

func (d fileDevice) Refresh(ctx context.Context) error {
	_, err := d.file.Refresh(ctx)
	return err
}

func (d fileDevice) Resize(ctx context.Context, right client.Right, size uint64) error {
	_, err := d.file.TruncateBy(ctx, right, size)
	return err
}

func (d fileDevice) Seek(ctx context.Context, off int64, hole bool) (int64, error) {
	return d.file.Seek(ctx, off, hole)
}

// New returns a server of exports, which must stay open until Close has returned. It serves nobody
// until Listen.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if len(o.Exports) == 0 {
		return nil, errors.New("serve network block devices: nothing to export")
	}
	l := o.Client.Loop()
	s := newServer(l, l.Pool(), l.Post, l.Done(), o.Log)
	s.listen = l.Listen
	for _, e := range o.Exports {
		if len(e.Name) > maxName || strings.ContainsRune(e.Name, 0) {
			return nil, fmt.Errorf("export %.60q: a name has at most %d bytes, and no NUL",
				e.Name, maxName)
		}
		for _, other := range s.exports {
			if other.name == e.Name {
				return nil, fmt.Errorf("export %q: the name is used twice", e.Name)
			}
		}
		s.exports = append(s.exports, &export{name: e.Name, description: e.Description,
			readOnly: e.ReadOnly, dev: fileDevice{o.Client.Engine(), e.File}})
	}
	return s, nil
}

func newServer(env uring.Env, pool *uring.Pool, post func(func()), gone <-chan struct{},
	log *slog.Logger) *Server {
	s := &Server{env: env, pool: pool, post: post, gone: gone, log: log,
		conns: map[*conn]struct{}{}, idle: make(chan struct{})}
	s.look.Fire = s.lookAround
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Listen accepts connections on addr: "ip:port" (port 0: any), or "unix:PATH". It returns the
// address it listens on. It may be called on any thread but the loop's, more than once.
func (s *Server) Listen(addr string) (bound string, err error) {
	done := make(chan struct{})
	s.post(func() {
		defer close(done)
		if s.closing {
			err = errors.New("the server is closed")
			return
		}
		var closer func()
		if bound, closer, err = s.listen(addr, s.attach); err == nil {
			s.closers = append(s.closers, closer)
		}
	})
	select {
	case <-done:
		return bound, err
	case <-s.gone:
		return "", fmt.Errorf("listen on %s: %w", addr, uring.ErrStopped)
	}
}

// attach makes the handler of a new connection.
func (s *Server) attach(uc uring.Conn) uring.ConnHandler {
	s.served++
	c := &conn{s: s, uc: uc, id: s.served}
	c.ctx, c.gone = context.WithCancel(s.ctx)
	c.hand.exports = s.exports
	c.timer.Fire = c.retry
	c.shake.Fire = c.late
	var refusal error
	switch {
	case s.closing:
		refusal = errors.New("the server is closing")
	case len(s.conns) >= maxConns:
		refusal = errTooMuch
	}
	s.conns[c] = struct{}{}
	if refusal != nil {
		s.post(func() { c.drop(refusal) })
		return c
	}
	s.env.Arm(&c.shake, handshakeTime)
	s.post(func() { c.send(greeting()) })
	return c
}

// Close ends the service: no new connections; requests under way are answered, then connections are
// closed, at once when ctx ends. It may be called on any thread but the loop's.
func (s *Server) Close(ctx context.Context) error {
	s.post(func() {
		if s.closing {
			return
		}
		s.closing = true
		for _, closer := range s.closers {
			closer()
		}
		for c := range s.conns {
			c.end()
		}
		s.left(nil)
	})
	defer s.stop()
	select {
	case <-s.idle:
		return nil
	case <-s.gone:
		return nil
	case <-ctx.Done():
	}
	s.post(func() {
		for c := range s.conns {
			c.drop(ctx.Err())
		}
	})
	return fmt.Errorf("close the server of network block devices: clients still had requests: %w",
		ctx.Err())
}

// left notes that a connection has gone and nothing of it is under way.
func (s *Server) left(c *conn) {
	if _, here := s.conns[c]; here {
		delete(s.conns, c)
		c.gone()
		if c.writes {
			c.export.dev.CloseForWrite()
		}
	}
	if s.closing && len(s.conns) == 0 {
		select {
		case <-s.idle:
		default:
			close(s.idle)
		}
	}
}
