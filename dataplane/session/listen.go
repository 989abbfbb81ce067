package session

import (
	"context"
	"net"
	"sync"
	"time"

	"pstorage/dataplane"
)

// MaxUnproven is how many connections of one Serve may be in their handshake at once. Others are
// closed at once, unanswered.
const MaxUnproven = 256

const acceptRetry = 50 * time.Millisecond

// Serve accepts connections on l until ctx ends, takes each through Server, and calls handle for
// those that proved themselves, on a goroutine of its own. handle owns the connection and decides
// by its Peer what to do with it; Serve returns when all calls of handle have. l is closed. The
// error is nil if ctx ended.
func Serve(ctx context.Context, l net.Listener, o *ServerOptions, handle func(*NetConn)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var running sync.WaitGroup
	defer running.Wait()

	unproven := make(chan struct{}, MaxUnproven)
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			if !temporary(err) {
				cancel()
				return dataplane.E("accept connections on "+l.Addr().String(),
					dataplane.Unreachable, err)
			}
			o.log().Warn("cannot accept a connection", "reason", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptRetry):
			}
			continue
		}
		select {
		case unproven <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		running.Go(func() {
			watch := closeOnDone(ctx, conn)
			nc, err := Server(conn, o)
			watch()
			<-unproven
			if err == nil {
				handle(nc)
			}
		})
	}
}

// temporary says whether accepting may work again: out of file descriptors, or a connection that
// was gone before it was taken.
func temporary(err error) bool {
	t, ok := err.(interface{ Temporary() bool })
	return ok && t.Temporary()
}
