package control

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

// This file is what a caller sees of the client; link.go keeps the connection.

// maxInflight is how many calls of one client are on their way at once; more wait. It is below
// MaxConcurrent, so that a busy server still reads, and answers pings.
const maxInflight = 192

// Options of a Client. Addrs and Cred are needed.
type Options struct {
	// Addrs returns the addresses of the metadata servers, "ip:port". It is asked again before
	// every round of attempts, so the list may change.
	Addrs func() []string
	Cred  *session.Credentials
	// OnPush is called for each message that the server sends by itself, and OnConnect after each
	// successful connection. Both are called in order from one goroutine and may use Call. A push
	// that came over a connection is reported after that connection's OnConnect.
	OnPush    func(op dataplane.Opcode, payload []byte)
	OnConnect func()
	Log       *slog.Logger // nil: slog.Default()
	// DialTimeout is for one address, 1 s if 0.
	DialTimeout time.Duration

	silence time.Duration // after which a server is taken for dead; 0: silenceLimit
	direct  time.Duration // see directEvery; 0: that
}

// FixedAddrs is an Options.Addrs that never changes.
func FixedAddrs(addrs ...string) func() []string { return func() []string { return addrs } }

// Client talks to the leader of the metadata servers, wherever it is, over one connection. Its
// methods may be called by any goroutine.
type Client struct {
	o     Options
	ctx   context.Context // ends at Close
	stop  context.CancelFunc
	ended sync.WaitGroup
	slots chan struct{} // one taken for each call on its way
	tasks chan func()   // OnConnect and OnPush, in order
	base  time.Time     // when it was made
	// proven are servers that were connected to. It belongs to run.
	proven map[string]bool

	mu      sync.Mutex // guards what follows
	nextID  uint64
	pending map[uint64]*call
	link    *link  // the connection, or nil
	leader  string // address of the server that answered last
	lastErr error  // why there is no connection
	lastLog string // what was logged last about it
}

// call is one request until its reply has come.
type call struct {
	id      uint64
	op      dataplane.Opcode
	payload []byte
	once    bool          // not to be sent a second time
	sent    *link         // over which it was sent last
	sentAt  int64         // when, in ns since the client was made
	done    chan struct{} // closed when reply or err is set
	reply   []byte
	err     error
}

// Dial returns a client that connects in the background, and again whenever the connection is
// lost, until Close (the end of ctx doesn't end it). It fails only for options that make no sense.
func Dial(ctx context.Context, o Options) (*Client, error) {
	if o.Addrs == nil || o.Cred == nil {
		return nil, dataplane.E("connect to the metadata servers", dataplane.Invalid,
			errors.New("no addresses or no credentials"))
	}
	if err := ctx.Err(); err != nil {
		return nil, dataplane.E("connect to the metadata servers", dataplane.Closed, err)
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = time.Second
	}
	if o.silence == 0 {
		o.silence = silenceLimit
	}
	if o.direct == 0 {
		o.direct = directEvery
	}
	c := &Client{o: o, nextID: firstID(), pending: map[uint64]*call{}, base: time.Now(),
		proven: map[string]bool{},
		slots:  make(chan struct{}, maxInflight), tasks: make(chan func(), maxTasks)}
	c.ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	c.ended.Go(c.run)
	c.ended.Go(c.runTasks)
	if o.Cred.Ring != nil && o.Cred.Role != dataplane.RoleMDS {
		c.ended.Go(c.keepKeys)
	}
	return c, nil
}

// firstID makes ids of a process that was started again differ from those of the one before it.
func firstID() uint64 {
	var b [8]byte
	rand.Read(b[4:]) // never fails
	b[0] = 1         // never zero, which pings have
	b[7] &= 0x7f     // far from wrapping around
	return binary.LittleEndian.Uint64(b[:])
}

// Call sends req and decodes the answer into reply (either may be nil). It waits for a leader,
// follows it, and repeats the request with the same id on another connection when one was lost,
// until ctx ends. An error is a *dataplane.Error: the server's, or TimedOut, Unreachable (never
// connected) or Closed.
func (c *Client) Call(ctx context.Context, op dataplane.Opcode, req, reply any) error {
	return c.do(ctx, op, req, reply, false)
}

// CallOnce is Call without repetition: it waits for a connection, sends the request once, and
// fails when the connection is lost (Closed) or is not to the leader (NotLeader; the client goes
// to the leader all the same). For heartbeats: it doesn't queue behind other calls, so there must
// be few at a time.
func (c *Client) CallOnce(ctx context.Context, op dataplane.Opcode, req, reply any) error {
	return c.do(ctx, op, req, reply, true)
}

func (c *Client) do(ctx context.Context, op dataplane.Opcode, req, reply any, once bool) error {
	k := &call{op: op, once: once, done: make(chan struct{})}
	if req != nil {
		k.payload = Marshal(req)
	}
	if len(k.payload) > dataplane.MaxControlPayload {
		return tooLarge(OpName(op), len(k.payload))
	}
	if !once {
		select {
		case c.slots <- struct{}{}:
			defer func() { <-c.slots }()
		case <-ctx.Done():
			return c.gaveUp(ctx, op)
		case <-c.ctx.Done():
			return dataplane.E(OpName(op), dataplane.Closed, errClientClosed)
		}
	}
	c.start(k)
	select {
	case <-k.done:
	case <-ctx.Done():
		c.forget(k)
		err := c.gaveUp(ctx, op)
		if once {
			c.doubt(k)
		}
		return err
	case <-c.ctx.Done():
		c.forget(k)
		return dataplane.E(OpName(op), dataplane.Closed, errClientClosed)
	}
	if k.err != nil || reply == nil {
		return k.err
	}
	return Unmarshal(k.reply, reply)
}

var errClientClosed = errors.New("this client was closed")

// gaveUp is the error of a call whose ctx ended.
func (c *Client) gaveUp(ctx context.Context, op dataplane.Opcode) error {
	c.mu.Lock()
	link, last := c.link, c.lastErr
	c.mu.Unlock()
	err, kind := context.Cause(ctx), dataplane.TimedOut
	if errors.Is(err, context.Canceled) {
		kind = dataplane.Closed
	}
	switch {
	case link != nil:
		err = fmt.Errorf("no answer from %s: %w", link.addr, err)
	case last != nil:
		if kind == dataplane.TimedOut {
			kind = dataplane.Unreachable
		}
		err = fmt.Errorf("%w; no metadata server leads: %w", err, last)
	}
	return dataplane.E(OpName(op), kind, err)
}

// start registers a call and sends it if there is a connection.
func (c *Client) start(k *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.id = c.nextID
	c.nextID++
	c.pending[k.id] = k
	if c.link != nil {
		c.link.send(k)
	}
}

// doubt drops the connection over which a call was sent if nothing at all has come since, nor comes
// when a sign of life is asked for. The next one is made only if both directions work: else, if
// only ours did, each heartbeat would make the leader believe in a lease of which its owner never
// hears.
func (c *Client) doubt(k *call) {
	c.mu.Lock()
	l, sentAt := k.sent, k.sentAt
	doubtful := l != nil && l == c.link && l.heard.Load() < sentAt
	c.mu.Unlock()
	if !doubtful {
		return
	}
	_ = l.out.send(&dataplane.Header{Op: dataplane.OpPing}, nil, queueAnyway) // an error: it is lost
	select {
	case <-c.ctx.Done():
	case <-time.After(doubtFor):
		if l.heard.Load() < sentAt {
			l.nc.Close()
		}
	}
}

// forget drops a call that nobody waits for any more.
func (c *Client) forget(k *call) {
	c.mu.Lock()
	delete(c.pending, k.id)
	c.mu.Unlock()
}

// Leader is the address of the server that answered last, or "".
func (c *Client) Leader() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leader
}

// Close drops the connection; calls fail with Closed. It waits until OnPush and OnConnect have
// returned, so it must not be called by them.
func (c *Client) Close() error {
	c.stop()
	c.ended.Wait()
	return nil
}
