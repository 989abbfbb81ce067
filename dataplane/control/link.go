package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

const (
	backoffMin = 20 * time.Millisecond
	backoffMax = time.Second
	maxHints   = 3    // redirections followed at once, then it is taken for an election
	maxTasks   = 1024 // pushes that wait for OnPush; beyond it the connection is dropped
)

var (
	errServerSilent = errors.New("the server is silent")
	errSlowPushes   = errors.New("pushed messages are not taken fast enough")
	errNoLeader     = errors.New("not the leader, and knows of none")
	errNotReply     = &dataplane.FrameError{Reason: "request from a server"}
)

// link is one connection of a client.
type link struct {
	c    *Client
	addr string
	via  string // the server that passes on to addr, or ""
	nc   *session.NetConn
	out  *sender
	// heard is when something came last, in ns since the client was made.
	heard atomic.Int64
	// What follows belongs to the goroutine that reads.
	hint   target // the leader, as the server says that isn't it
	useful bool   // some call was answered
	left   error  // why it was left although it worked; guarded by Client.mu
}

// send is called with Client.mu held.
func (l *link) send(k *call) {
	k.sent, k.sentAt = l, int64(time.Since(l.c.base))
	h := dataplane.Header{Op: k.op, ReqID: k.id}
	// An error means that the connection is lost: the call is sent again over the next one.
	_ = l.out.send(&h, k.payload, queueAnyway)
}

// run keeps a connection until the client is closed. After a redirection the leader that was named
// is tried at once; otherwise all addresses in turn, then a pause that doubles.
func (c *Client) run() {
	backoff := backoffMin
	hint, hints := target{}, 0
	lost := "" // what was tried last
	for c.ctx.Err() == nil {
		targets := []target{hint}
		if hint.addr == "" {
			targets = c.targets(lost)
		}
		hint = target{}
		for _, t := range targets {
			var useful bool
			lost = t.addr
			if hint, useful = c.try(t); useful {
				backoff, hints = backoffMin, 0
			}
			if hint.addr != "" {
				break
			}
		}
		if hint.addr != "" && hints < maxHints {
			hints++
			continue
		}
		hint, hints = target{}, 0
		select {
		case <-c.ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// maxProven bounds Client.proven: there are few metadata servers, and they rarely move.
const maxProven = 64

// targets are all servers. Those that have proved themselves are first, as anybody on the network
// can have others found by multicast, each of which takes its time; the one that was just lost is
// last, as most likely it is still silent.
func (c *Client) targets(lost string) []target {
	var all, others, last []target
	for _, addr := range c.o.Addrs() {
		t := target{addr: addr}
		switch {
		case addr == lost:
			last = append(last, t)
		case c.proven[addr]:
			all = append(all, t)
		default:
			others = append(others, t)
		}
	}
	return slices.Concat(all, others, last)
}

// runTasks calls OnConnect and OnPush.
func (c *Client) runTasks() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case f := <-c.tasks:
			f()
		}
	}
}

// try connects to t and serves the connection until it is lost. hint is the leader that the server
// named, if it isn't the leader itself; useful says that some call was answered.
func (c *Client) try(t target) (hint target, useful bool) {
	if c.ctx.Err() != nil {
		return target{}, false
	}
	addr := t.addr
	nc, via, err := c.connect(t)
	if err != nil {
		c.lost(addr, err)
		return target{}, false
	}
	if via == "" {
		if len(c.proven) >= maxProven {
			clear(c.proven)
		}
		c.proven[addr] = true
	}
	l := &link{c: c, addr: addr, via: via, nc: nc, out: newSender(nc)}
	stop := context.AfterFunc(c.ctx, func() { nc.Close() })
	stopPings := l.startPings()
	stopWatch := func() {}
	if via != "" {
		c.o.Log.Info("the leader is reached through another metadata server", "addr", addr,
			"through", via)
		stopWatch = l.watchDirect()
	}
	c.attach(l)
	err = l.read()
	l.out.close()
	nc.Close()
	stop()
	stopPings()
	stopWatch()
	<-l.out.done

	c.mu.Lock()
	c.link = nil
	if l.left != nil {
		err = l.left
	}
	for _, k := range c.pending {
		if k.once && k.sent == l {
			c.finish(k, nil, dataplane.E(OpName(k.op), dataplane.Closed,
				fmt.Errorf("connection to %s lost: %w", addr, err)))
		}
	}
	c.mu.Unlock()
	c.lost(addr, err)
	return l.hint, l.useful
}

// lost notes why there is no connection to addr, and logs it when it is news.
func (c *Client) lost(addr string, err error) {
	if c.ctx.Err() != nil {
		return
	}
	err = fmt.Errorf("%s: %w", addr, err)
	c.mu.Lock()
	c.lastErr = err
	news := c.lastLog != err.Error()
	c.lastLog = err.Error()
	c.mu.Unlock()
	if news {
		c.o.Log.Info("no connection to a metadata server", "addr", addr, "reason", err)
	}
}

// attach makes l the connection and sends all calls that have no answer, oldest first.
func (c *Client) attach(l *link) {
	if c.o.OnConnect != nil {
		select {
		case c.tasks <- c.o.OnConnect:
		case <-c.ctx.Done():
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link = l
	for _, id := range slices.Sorted(maps.Keys(c.pending)) {
		l.send(c.pending[id])
	}
}

// task queues f for runTasks; false if there are too many.
func (l *link) task(f func()) bool {
	select {
	case l.c.tasks <- f:
		return true
	default:
		return false
	}
}

// startPings makes a living server say something all the time. The result ends it.
func (l *link) startPings() (stop func()) {
	return every(l.c.o.silence/pingsPerSilence, func() bool {
		_ = l.out.send(&dataplane.Header{Op: dataplane.OpPing}, nil, queueAnyway)
		return true
	})
}

// every calls do again and again on a goroutine of its own, until do says no or stop is called.
func every(interval time.Duration, do func() bool) (stop func()) {
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if !do() {
					return
				}
			}
		}
	}()
	return func() { close(done) }
}

// read takes what the server sends until the connection is of no use any more, and says why.
func (l *link) read() error {
	for {
		l.nc.SetReadDeadline(time.Now().Add(l.c.o.silence))
		var h dataplane.Header
		payload, err := l.nc.ReadFrame(&h, nil)
		switch {
		case isTimeout(err):
			return errServerSilent
		case err != nil:
			return err
		}
		l.heard.Store(int64(time.Since(l.c.base)))
		switch {
		case h.Flags&dataplane.FlagPush != 0:
			if f := l.c.o.OnPush; f != nil && !l.task(func() { f(h.Op, payload) }) {
				return errSlowPushes
			}
		case h.Flags&dataplane.FlagReply == 0:
			return errNotReply
		case h.Op == dataplane.OpPing:
		case h.Status == dataplane.NotLeader:
			return l.redirected(&h, payload)
		default:
			l.replied(&h, payload)
		}
	}
}

// replied ends the call that was answered.
func (l *link) replied(h *dataplane.Header, payload []byte) {
	c := l.c
	l.useful = true
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader, c.lastErr, c.lastLog = l.addr, nil, ""
	k := c.pending[h.ReqID]
	if k == nil || k.op != h.Op {
		return // given up meanwhile
	}
	if h.Status == dataplane.OK {
		c.finish(k, payload, nil)
		return
	}
	c.finish(k, nil, l.remoteError(h, payload))
}

// remoteError makes an error out of a reply.
func (l *link) remoteError(h *dataplane.Header, payload []byte) error {
	var e ErrorReply
	var cause error
	if Unmarshal(payload, &e) == nil && e.Message != "" {
		cause = errors.New(e.Message)
	}
	return dataplane.E(OpName(h.Op)+" at "+l.addr, h.Status, cause)
}

// redirected ends the connection to a server that isn't the leader. The calls stay pending.
func (l *link) redirected(h *dataplane.Header, payload []byte) error {
	var e ErrorReply
	_ = Unmarshal(payload, &e) // without a hint the other addresses are tried
	if e.Leader != l.addr {
		l.hint.addr = e.Leader
		switch {
		case l.via != "":
			l.hint.via = l.via // this one isn't reached itself
		case e.Relays:
			l.hint.via = l.addr
		}
	}
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if k := l.c.pending[h.ReqID]; k != nil && k.once {
		l.c.finish(k, nil, l.remoteError(h, payload))
	}
	if l.hint.addr == "" {
		return errNoLeader
	}
	return fmt.Errorf("not the leader: that is %s", l.hint.addr)
}

// finish ends a call. Client.mu is held.
func (c *Client) finish(k *call, reply []byte, err error) {
	delete(c.pending, k.id)
	k.reply, k.err = reply, err
	close(k.done)
}
