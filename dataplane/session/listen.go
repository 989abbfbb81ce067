package session

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"pstorage/dataplane"
)

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

	var unproven waiting
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
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
		unproven.add(conn)
		running.Go(func() {
			watch := closeOnDone(ctx, conn)
			nc, err := Server(conn, o)
			watch()
			unproven.remove(conn)
			if err == nil {
				handle(nc)
			}
		})
	}
}

// waiting are the connections of one Serve in their handshake, MaxUnproven at most: another one
// takes the place of the oldest, which is closed.
type waiting struct {
	mu    sync.Mutex
	conns []net.Conn // in the order in which they came
}

func (w *waiting) add(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.conns) >= MaxUnproven {
		w.conns[0].Close()
		w.conns = slices.Delete(w.conns, 0, 1)
	}
	w.conns = append(w.conns, c)
}

func (w *waiting) remove(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.conns, c); i >= 0 {
		w.conns = slices.Delete(w.conns, i, i+1)
	}
}
