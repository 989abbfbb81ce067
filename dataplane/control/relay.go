package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

// This file is the way to the leader for those that only its followers can reach: a client asks one
// of them, by session.ServiceRelay, to pass bytes on, and proves itself to the leader through it as
// over any other connection. The follower sees what the network would see.

const (
	// directTime is how long the leader is tried itself where a follower would pass on to it.
	directTime = 300 * time.Millisecond
	// directEvery is how often a client that came through a follower tries the leader itself.
	directEvery = 10 * time.Second
	relayBuffer = 16 << 10
)

var errDirect = errors.New("the leader itself can be reached again")

// target is where a client connects to.
type target struct {
	addr string
	// via is a server that named addr as the leader and passes on to it; or "".
	via string
}

// connect connects to a server as the service for frames: if that is the leader and doesn't take
// connections, through the follower that named it. through is the follower, or "".
func (c *Client) connect(t target) (nc *session.NetConn, through string, err error) {
	limit := c.o.DialTimeout
	if t.via != "" {
		limit = min(limit, directTime)
	}
	nc, err = c.dial(t.addr, limit)
	if err == nil || t.via == "" || c.ctx.Err() != nil ||
		dataplane.KindOf(err) != dataplane.Unreachable {
		return nc, "", err
	}
	nc, rerr := c.dialThrough(t.via)
	if rerr != nil {
		return nil, "", fmt.Errorf("%w; and through %s: %w", err, t.via, rerr)
	}
	return nc, t.via, nil
}

// dial connects to one address, which has so long to take the connection.
func (c *Client) dial(addr string, limit time.Duration) (*session.NetConn, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.o.DialTimeout)
	defer cancel()
	conn, err := c.accepted(ctx, addr, limit)
	if err != nil {
		return nil, err
	}
	return c.prove(ctx, conn)
}

// dialThrough connects to the leader that the server at addr follows.
func (c *Client) dialThrough(addr string) (*session.NetConn, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.o.DialTimeout)
	defer cancel()
	conn, err := c.accepted(ctx, addr, c.o.DialTimeout)
	if err != nil {
		return nil, err
	}
	relay, err := session.Client(ctx, conn, c.o.Cred, session.ServiceRelay)
	if err != nil {
		return nil, err
	}
	return c.prove(ctx, relay)
}

// accepted is a connection that addr took within limit.
func (c *Client) accepted(ctx context.Context, addr string, limit time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: limit}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, dataplane.E("connect to "+addr, dataplane.Unreachable, err)
	}
	return conn, nil
}

// prove makes conn a connection to a metadata server.
func (c *Client) prove(ctx context.Context, conn net.Conn) (*session.NetConn, error) {
	nc, err := session.Client(ctx, conn, c.o.Cred, session.ServiceRPC)
	if err != nil {
		return nil, err
	}
	if nc.Peer().Role != dataplane.RoleMDS {
		nc.Close()
		return nil, dataplane.E("connect to "+conn.RemoteAddr().String(), dataplane.Denied,
			fmt.Errorf("%v is not a metadata server", nc.Peer()))
	}
	return nc, nil
}

// watchDirect ends a connection through a follower when the leader itself can be reached. The
// result ends the watch.
func (l *link) watchDirect() (stop func()) {
	return every(l.c.o.direct, func() bool {
		nc, err := l.c.dial(l.addr, directTime)
		if err != nil {
			return true
		}
		nc.Close()
		l.c.mu.Lock()
		l.left = errDirect
		l.c.mu.Unlock()
		l.nc.Close()
		return false
	})
}

// Relay serves a connection that asked for session.ServiceRelay: it passes bytes between nc and the
// leader at addr, "ip:port", until one of them ends or is silent for too long, or ctx ends. It
// closes nc. The error is nil if nothing went wrong before the leader had taken the connection.
func Relay(ctx context.Context, nc *session.NetConn, addr string) error {
	defer nc.Close()
	d := net.Dialer{Timeout: directTime}
	leader, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return dataplane.E("pass "+nc.Peer().String()+" on to the leader at "+addr,
			dataplane.Unreachable, err)
	}
	defer leader.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close(); leader.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pass(nc, leader)
	}()
	pass(leader, nc)
	<-done
	return nil
}

// pass copies what comes from src to dst until that doesn't work any more, and closes both. A
// living connection is never silent for silenceLimit: clients ask for signs of life.
func pass(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, relayBuffer)
	for {
		src.SetReadDeadline(time.Now().Add(silenceLimit))
		n, err := src.Read(buf)
		if n > 0 {
			dst.SetWriteDeadline(time.Now().Add(silenceLimit))
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
