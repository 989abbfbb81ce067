package control

import (
	"errors"
	"sync"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

// Limits of one connection.
const (
	maxQueued    = 4 << 20          // bytes; beyond it replies wait and pushes fail
	writeTime    = 10 * time.Second // for one write: a peer that reads nothing for so long is closed
	keepBuffer   = 256 << 10        // bytes; larger output buffers are given back
	silenceLimit = 4 * time.Second  // without a frame from the server the client looks for another
	idleLimit    = 20 * time.Second // without a frame from the client the server closes

	doubtFor = 150 * time.Millisecond // for a sign of life after a call that got no answer

	pingsPerSilence = 4 // so often in silenceLimit a client asks for a sign of life
)

var errQueueFull = errors.New("the peer does not read what it is sent")

// sender queues frames for a connection and writes what has gathered with one call, from a
// goroutine of its own.
type sender struct {
	nc *session.NetConn

	mu     sync.Mutex // guards what follows
	room   sync.Cond  // the queue has become shorter, or closed
	work   sync.Cond  // the queue isn't empty any more, or closed
	buf    []byte
	closed bool
	done   chan struct{} // closed when the goroutine has ended
}

func newSender(nc *session.NetConn) *sender {
	s := &sender{nc: nc, done: make(chan struct{})}
	s.room.L, s.work.L = &s.mu, &s.mu
	go s.run()
	return s
}

// What send does when the queue is full.
type whenFull uint8

const (
	waitForRoom whenFull = iota
	failIfFull
	queueAnyway // the caller bounds it in another way
)

// send queues a frame. An error means that it will not be sent.
func (s *sender) send(h *dataplane.Header, payload []byte, full whenFull) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.buf) > maxQueued && !s.closed && full != queueAnyway {
		if full == failIfFull {
			return dataplane.E("send to "+s.nc.RemoteAddr().String(), dataplane.Overloaded,
				errQueueFull)
		}
		s.room.Wait()
	}
	if s.closed {
		return dataplane.E("send to "+s.nc.RemoteAddr().String(), dataplane.Closed, nil)
	}
	s.buf = session.AppendFrame(s.buf, h, payload)
	s.work.Signal()
	return nil
}

// close drops what is queued. The caller closes the connection.
func (s *sender) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.room.Broadcast()
	s.work.Broadcast()
}

// run writes until the sender or the connection is closed.
func (s *sender) run() {
	defer close(s.done)
	var batch []byte
	for {
		s.mu.Lock()
		for len(s.buf) == 0 && !s.closed {
			s.work.Wait()
		}
		if s.closed {
			s.mu.Unlock()
			return
		}
		batch, s.buf = s.buf, batch[:0]
		s.mu.Unlock()
		s.room.Broadcast()

		s.nc.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := s.nc.Write(batch); err != nil {
			s.close()
			s.nc.Close()
			return
		}
		if cap(batch) > keepBuffer {
			batch = nil
		}
	}
}
