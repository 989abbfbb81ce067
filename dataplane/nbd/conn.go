package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/uring"
)

// The way of a request:
//
//	Recv      take: the header; checks; an op with a buffer; a WRITE's payload into it
//	submit    the engine of the client library
//	done      the answer, out of the same buffer
//
// Requests of one connection are answered in the order in which they are done.

const (
	maxRequests = 1024
	maxBytes    = 64 << 20
	breath      = int64(time.Millisecond) // between two looks for a buffer, or at a slow reader
	maxExtents  = 128                     // in one BLOCK_STATUS reply

	// Of a server, over all its connections.
	maxConns      = 256                     // a client has a few
	maxBig        = 256 << 20               // bytes of payloads that are too large for the pool
	handshakeTime = int64(30 * time.Second) // then a connection without a device is closed
	lingerTime    = int64(10 * time.Second) // without anything taken; then an ending one is closed
)

// conn is one connection.
type conn struct {
	s    *Server
	uc   uring.Conn
	id   uint64
	hand negotiation

	export     *export // nil: in the handshake
	structured bool
	meta       bool // base:allocation was chosen
	size       uint64
	writes     bool         // the export may be written; if so
	right      client.Right // is by which

	live   int    // ops under way
	busy   *op    // those of them that the device has
	bytes  uint64 // of their payload
	big    int    // of that outside of the pool
	recv   *op    // a WRITE whose payload is being received
	paused bool   // the socket isn't read: too much is under way
	ending bool   // no more requests; closed when everything is answered
	closed bool
	ctx    context.Context // of what isn't done on the loop
	gone   context.CancelFunc
	timer  uring.Timer
	shake  uring.Timer // the handshake, or the taking of the last replies, takes too long

	// See share.go.
	sent, came   uint64 // bytes for the client; of payloads of WRITEs from it
	takes, gives still
	hungry       bool // it waited for memory since the last look
}

// op is a request under way.
type op struct {
	client.Op
	c    *conn
	r    request
	buf  *uring.Buf // of the pool; or
	big  []byte     // of its own
	have int        // bytes of a WRITE's payload that have come
	left int64      // bytes that a WRITE_ZEROES with NO_HOLE still has to write
	next *op        // in c.busy, or the free list
	prev *op        // in c.busy
}

var (
	errBusyPool = errors.New("no buffer")
	errTooLong  = errors.New("a WRITE is longer than 32 MiB")
	errSlow     = errors.New("the handshake took too long")
	errUnread   = errors.New("the client left and didn't take its last replies for 10 s")
	errHungUp   = errors.New("the client hung up and left more requests than are taken at a time")
	errTooMuch  = fmt.Errorf("there are %d connections already", maxConns)
)

// Recv implements uring.ConnHandler.
func (c *conn) Recv(p []byte) (used int, into []byte) {
	if c.closed || c.ending {
		return len(p), nil
	}
	if c.export == nil {
		n, out, err := c.hand.step(p)
		c.send(out)
		if err != nil {
			c.drop(err)
			return len(p), nil
		}
		if c.hand.wants != nil {
			c.refresh(c.hand.wants)
			return n, nil
		}
		if used = n; c.hand.chosen == nil {
			return used, nil
		}
		c.export, c.structured = c.hand.chosen, c.hand.structured
		c.meta = c.hand.metaExport == c.export && c.structured
		c.size = c.export.size()
		if c.writes = !c.export.readOnly; c.writes {
			c.right = c.export.dev.OpenForWrite()
		}
		c.s.env.Disarm(&c.shake)
		c.s.log.Info("a client is connected", "export", c.export.name, "from", c.uc.RemoteAddr(),
			"connection", c.id)
	}
	if c.recv != nil {
		used += c.fill(p[used:])
	}
	for c.recv == nil && !c.closed && !c.ending {
		n, err := c.take(p[used:])
		if err == errBusyPool {
			c.s.wants(c)
			c.pause()
			c.s.env.Arm(&c.timer, breath)
			return used, nil
		}
		if err != nil {
			c.drop(err)
			return len(p), nil
		}
		if n == 0 {
			return used, nil
		}
		used += n
	}
	if c.closed || c.ending {
		return len(p), nil
	}
	if o := c.recv; o.buf != nil {
		return used, o.data()[o.have:]
	}
	return used, nil
}

// RecvDone implements uring.ConnHandler.
func (c *conn) RecvDone() {
	o := c.recv
	c.came += uint64(len(o.data()) - o.have)
	o.have = len(o.data())
	c.recv = nil
	c.submit(o)
}

// Closed implements uring.ConnHandler.
func (c *conn) Closed(err error) {
	c.closed = true
	c.s.env.Disarm(&c.timer)
	c.s.env.Disarm(&c.shake)
	if o := c.recv; o != nil {
		c.recv = nil
		c.finish(o)
	}
	if !c.ending {
		c.callOff()
	}
	if c.export != nil {
		if err == io.EOF || c.ending {
			err = nil
		}
		c.s.log.Info("a client has gone", "export", c.export.name, "connection", c.id, "err", err)
	}
	if c.live == 0 {
		c.s.left(c)
	}
}

// refresh asks for the size of e, which the handshake waits for.
func (c *conn) refresh(e *export) {
	c.uc.PauseRecv(true)
	go func() {
		ctx, cancel := context.WithTimeout(c.ctx, refreshTime)
		defer cancel()
		if err := e.dev.Refresh(ctx); err != nil && c.ctx.Err() == nil {
			c.s.log.Warn("the size of an exported file isn't known for sure", "export", e.name,
				"err", err)
		}
		c.s.post(func() {
			if c.hand.know(e); !c.closed && !c.ending {
				c.uc.PauseRecv(false)
			}
		})
	}()
}

// callOff cancels what is under way for a client that has gone without a good-bye. It may be back
// with another connection and send again what wasn't answered, then other data for the same place:
// a write of before must not be done after that.
func (c *conn) callOff() {
	c.gone()
	for o := c.busy; o != nil; o = o.next {
		c.export.dev.Cancel(&o.Op)
	}
}

// start gives an op to the device.
func (c *conn) start(o *op) {
	o.next, o.prev = c.busy, nil
	if c.busy != nil {
		c.busy.prev = o
	}
	c.busy = o
	o.Right = c.right
	c.export.dev.Submit(&o.Op)
}

// ended is told of an op that the device has done.
func (c *conn) ended(o *op) {
	if o.next != nil {
		o.next.prev = o.prev
	}
	if o.prev != nil {
		o.prev.next = o.next
	} else {
		c.busy = o.next
	}
	o.next, o.prev = nil, nil
	c.done(o)
}

// send queues a copy of p.
func (c *conn) send(p []byte) {
	for !c.closed && len(p) > 0 {
		n := min(len(p), 4096)
		c.uc.Append(p[:n])
		c.sent += uint64(n)
		p = p[n:]
	}
}

// reserve is what the caller fills with the next n bytes for the client.
func (c *conn) reserve(n int) []byte {
	c.sent += uint64(n)
	return c.uc.Reserve(n)
}

// drop closes the connection now.
func (c *conn) drop(why error) {
	if c.closed {
		return
	}
	c.s.env.Disarm(&c.shake)
	if c.export != nil || !errors.Is(why, errAborted) {
		c.s.log.Warn("a connection is closed", "connection", c.id, "from", c.uc.RemoteAddr(),
			"reason", why)
	}
	if c.export == nil && c.uc.Queued() > 0 { // what the handshake said last is to be read
		c.linger()
		c.s.env.Arm(&c.timer, breath)
		return
	}
	c.closed = true
	c.uc.Close(why)
}

// linger takes no more requests, and gives the client time to take what was sent.
func (c *conn) linger() {
	c.ending = true
	c.uc.PauseRecv(true)
	c.takes = still{c.taken(), c.s.env.Now()}
	c.s.env.Arm(&c.shake, lingerTime)
}

// late: the client hasn't done in time what it had to.
func (c *conn) late() {
	switch {
	case c.closed:
	case !c.ending:
		c.drop(errSlow)
	case c.takes.age(c.s.env.Now(), c.uc.Queued() > 0, c.taken()) < lingerTime:
		c.s.env.Arm(&c.shake, lingerTime)
	default:
		c.s.log.Warn("a connection is closed", "connection", c.id, "from", c.uc.RemoteAddr(),
			"reason", errUnread)
		c.closed = true
		c.uc.Close(errUnread)
	}
}

// end takes no more requests, and closes the connection when those under way are answered.
func (c *conn) end() {
	if c.closed || c.ending {
		return
	}
	c.linger()
	c.retry()
}

// retry looks whether what the connection waits for has come.
func (c *conn) retry() {
	switch {
	case c.closed:
	case c.ending:
		half := 0 // a WRITE whose payload hasn't come; its memory is in use until Closed
		if c.recv != nil {
			half = 1
		}
		if c.live == half && c.uc.Queued() == 0 {
			c.closed = true
			c.uc.Close(io.EOF)
			return
		}
		c.s.env.Arm(&c.timer, breath)
	case c.paused && !c.full():
		c.paused = false
		c.uc.PauseRecv(false)
	case c.paused:
		if seer, ok := c.uc.(uring.HangupSeer); ok && seer.HungUp() {
			c.drop(errHungUp)
			return
		}
		c.s.env.Arm(&c.timer, breath)
	}
}

func (c *conn) full() bool {
	return c.live >= maxRequests || c.bytes+uint64(c.uc.Queued()) >= maxBytes
}

func (c *conn) pause() {
	if !c.paused {
		c.paused = true
		c.uc.PauseRecv(true)
	}
}

// take takes one request out of p; 0: it isn't complete, or too much is under way. The payload of a
// is taken as far as it is there; if more is to come, c.recv waits for it.
func (c *conn) take(p []byte) (used int, err error) {
	if c.full() {
		c.pause()
		c.s.env.Arm(&c.timer, breath)
		return 0, nil
	}
	if len(p) < requestSize {
		return 0, nil
	}
	r, err := parseRequest(p)
	if err != nil {
		return 0, err
	}
	if r.cmd == cmdDisc {
		c.end()
		return requestSize, nil
	}
	payload := uint32(0)
	switch r.cmd {
	case cmdWrite:
		if payload = r.length; payload > maxPayload {
			return 0, errTooLong
		}
	case cmdRead:
		payload = r.length
	}
	errno := c.check(&r)
	if errno != 0 && r.cmd != cmdWrite {
		payload = 0
	}
	o, err := c.newOp(r, int(payload))
	if err != nil {
		return 0, err
	}
	if errno != 0 {
		o.Err = wireError(errno)
	}
	used = requestSize
	if r.cmd == cmdWrite {
		c.recv = o
		return used + c.fill(p[used:]), nil
	}
	c.submit(o)
	return used, nil
}

// fill takes what is there of the payload of c.recv.
func (c *conn) fill(p []byte) int {
	o := c.recv
	n := copy(o.data()[o.have:], p)
	c.came += uint64(n)
	if o.have += n; o.have == len(o.data()) {
		c.recv = nil
		c.submit(o)
	}
	return n
}

// wireError is an error with a number of the protocol.
type wireError uint32

func (e wireError) Error() string {
	switch e {
	case errPerm:
		return "the export is read-only"
	case errNoSpace:
		return "a write behind the end of the device"
	case errOverflow:
		return "the request is too long"
	case errNotSup:
		return "zeros without a hole aren't fast"
	}
	return "the request makes no sense"
}

// check says what is wrong with a request, as a number of the protocol.
func (c *conn) check(r *request) uint32 {
	allowed := uint16(0)
	behind := uint32(errInvalid)
	switch r.cmd {
	case cmdRead:
		allowed = cmdFlagDF
		if r.length > maxPayload {
			return errOverflow
		}
	case cmdWrite:
		behind = errNoSpace
	case cmdFlush:
		if r.offset != 0 || r.length != 0 {
			return errInvalid
		}
	case cmdTrim, cmdCache:
	case cmdWriteZeroes:
		allowed = cmdFlagNoHole | cmdFlagFastZero
		behind = errNoSpace
		if r.flags&(cmdFlagNoHole|cmdFlagFastZero) == cmdFlagNoHole|cmdFlagFastZero {
			return errNotSup // without a hole it isn't faster than a WRITE
		}
	case cmdBlockStatus:
		allowed = cmdFlagReqOne
		if !c.meta || r.length == 0 {
			return errInvalid
		}
	case cmdResize:
		if r.length != 0 || r.offset > client.MaxFileSize {
			return errInvalid
		}
	default:
		return errInvalid
	}
	// FUA may come with every command.
	if r.flags&^(allowed|cmdFlagFUA) != 0 {
		return errInvalid
	}
	switch r.cmd {
	case cmdWrite, cmdTrim, cmdWriteZeroes, cmdResize:
		if c.export.readOnly {
			return errPerm
		}
	}
	if r.cmd != cmdResize && c.behind(r) {
		return behind
	}
	return 0
}

// behind says whether a request goes behind the end of the device.
func (c *conn) behind(r *request) bool {
	size := c.size
	if r.cmd == cmdWrite { // a write to where the device was cut off would make the file longer again
		size = min(size, c.export.size())
	}
	return r.offset > size || uint64(r.length) > size-r.offset
}

// newOp makes an op with a buffer of n bytes. Half of the pool is left to the client's connections:
// a READ holds its buffer until the data have come through one of theirs. Of the other half c may
// hold as much as is free then, so that clients that take no replies leave others something. If no
// memory of the size is to be had, though half isn't in use, what is free doesn't lie side by side:
// waiting may not help for long, and the op gets memory of its own.
func (c *conn) newOp(r request, n int) (*op, error) {
	var buf *uring.Buf
	if n > 0 && n <= bufferSize {
		pool := c.s.pool
		if free := len(pool.Arena())/2 - pool.InUse(); c.hold() > free {
			return nil, errBusyPool
		}
		buf = pool.Get(n)
	}
	big := n > 0 && buf == nil
	if big && c.s.big > 0 && c.big+n > maxBig-c.s.big {
		return nil, errBusyPool
	}
	o := c.s.free
	if o == nil {
		o = &op{}
		o.Done = func(*client.Op) { o.c.ended(o) }
	} else {
		c.s.free = o.next
	}
	o.c, o.r, o.buf, o.have, o.left, o.next = c, r, buf, 0, 0, nil
	o.Err, o.N, o.FUA, o.Buf = nil, 0, false, nil
	if big {
		o.big = make([]byte, n)
		c.big += n
		c.s.big += n
	}
	c.live++
	c.bytes += uint64(n)
	return o, nil
}

// data is the payload's memory.
func (o *op) data() []byte {
	switch {
	case o.buf != nil:
		return o.buf.Bytes()[:o.r.length]
	case o.big != nil:
		return o.big
	}
	return nil
}

// submit starts a request whose payload is complete.
func (c *conn) submit(o *op) {
	if o.Err != nil {
		c.done(o)
		return
	}
	o.Offset, o.FUA = int64(o.r.offset), o.r.flags&cmdFlagFUA != 0
	switch o.r.cmd {
	case cmdRead:
		o.Kind, o.FUA, o.Buf = client.Read, false, o.data()
	case cmdWrite:
		if c.behind(&o.r) { // the device was cut off while the payload came
			o.Err = wireError(errNoSpace)
			c.done(o)
			return
		}
		o.Kind, o.Buf = client.Write, o.data()
	case cmdFlush:
		o.Kind = client.Flush
	case cmdTrim, cmdWriteZeroes:
		from, to := int64(o.r.offset), int64(o.r.offset)+int64(o.r.length)
		if o.r.cmd == cmdTrim { // only whole blocks: it is advice
			from = (from + dataplane.BlockSize - 1) &^ (dataplane.BlockSize - 1)
			to &^= dataplane.BlockSize - 1
		}
		if from >= to {
			c.done(o)
			return
		}
		if o.r.flags&cmdFlagNoHole != 0 {
			o.left = to - from
			c.writeZeros(o)
			return
		}
		o.Kind, o.Offset, o.Length = client.Zero, from, to-from
	case cmdBlockStatus:
		go c.status(o)
		return
	case cmdResize:
		c.export.resize(o)
		return
	default: // CACHE
		c.done(o)
		return
	}
	if (o.Kind == client.Read || o.Kind == client.Write) && len(o.Buf) == 0 {
		c.done(o)
		return
	}
	c.start(o)
}

// zeros is what WRITE_ZEROES with NO_HOLE writes.
var zeros [bufferSize]byte

// writeZeros writes the next piece of o: the space is to be taken, as by a WRITE.
func (c *conn) writeZeros(o *op) {
	n := min(o.left, int64(len(zeros)))
	o.Kind, o.Buf = client.Write, zeros[:n]
	o.Offset = int64(o.r.offset) + int64(o.r.length) - o.left
	o.left -= n
	if uint64(o.Offset+n) > c.export.size() { // it would make the file longer, as in check
		o.left, o.Err = 0, wireError(errNoSpace)
		c.done(o)
		return
	}
	c.start(o)
}

// done answers a request.
func (c *conn) done(o *op) {
	if o.Err == nil && o.left > 0 && (!c.closed || c.ending) {
		c.writeZeros(o)
		return
	}
	if o.Err == nil && o.Kind == client.Zero && o.FUA && !c.closed &&
		(o.r.cmd == cmdTrim || o.r.cmd == cmdWriteZeroes) {
		o.Kind, o.FUA = client.Flush, false
		c.start(o)
		return
	}
	if !c.closed {
		c.answer(o)
	}
	c.finish(o)
}

// answer sends the reply of a request other than BLOCK_STATUS.
func (c *conn) answer(o *op) {
	errno := c.errno(o)
	if o.r.cmd != cmdRead || errno != 0 {
		if c.structured && (o.r.cmd == cmdRead || o.r.cmd == cmdBlockStatus) {
			p := c.reserve(structuredSize + 6)
			putStructured(p, chunkDone, chunkError, o.r.cookie, 6)
			binary.BigEndian.PutUint32(p[structuredSize:], errno)
			binary.BigEndian.PutUint16(p[structuredSize+4:], 0)
			return
		}
		putSimple(c.reserve(simpleSize), errno, o.r.cookie)
		return
	}
	data := o.data()
	clear(data[o.N:]) // the file became shorter than the device was
	switch {
	case c.structured && len(data) == 0:
		putStructured(c.reserve(structuredSize), chunkDone, chunkNone, o.r.cookie, 0)
	case c.structured:
		p := c.reserve(structuredSize + 8)
		putStructured(p, chunkDone, chunkOffsetData, o.r.cookie, uint32(8+len(data)))
		binary.BigEndian.PutUint64(p[structuredSize:], o.r.offset)
	default:
		putSimple(c.reserve(simpleSize), 0, o.r.cookie)
	}
	if o.buf != nil {
		c.uc.AppendBuf(o.buf, 0, len(data))
		c.sent += uint64(len(data))
	} else {
		c.send(data)
	}
}

// errno is what the client is told of the op's error.
func (c *conn) errno(o *op) uint32 {
	if o.Err == nil {
		return 0
	}
	if e, ok := o.Err.(wireError); ok {
		return uint32(e)
	}
	c.s.log.Warn("a request failed", "export", c.export.name, "connection", c.id,
		"command", o.r.cmd, "offset", o.r.offset, "length", o.r.length, "err", o.Err)
	return errorOf(o.Err)
}

// finish frees an op.
func (c *conn) finish(o *op) {
	c.live--
	if o.buf != nil || o.big != nil {
		c.bytes -= uint64(len(o.data()))
	}
	if o.buf != nil {
		o.buf.Release()
	}
	c.big -= len(o.big)
	c.s.big -= len(o.big)
	o.buf, o.big, o.Buf, o.c = nil, nil, nil, nil
	o.next, c.s.free = c.s.free, o
	switch {
	case c.closed:
		if c.live == 0 {
			c.s.left(c)
		}
	case c.ending || c.paused:
		if !c.timer.Armed() {
			c.s.env.Arm(&c.timer, 0)
		}
	}
}

// status answers BLOCK_STATUS: which parts of the range are allocated, in whole chunks. It runs on
// a goroutine of its own.
func (c *conn) status(o *op) {
	var list []byte
	off, end := int64(o.r.offset), int64(o.r.offset)+int64(o.r.length)
	var err error
	for n := 0; off < end && n < maxExtents && err == nil; n++ {
		var data, stop int64
		state := uint32(0)
		if data, err = c.seek(off, false, end); err != nil {
			break
		}
		if stop = data; data > off {
			state = stateHole | stateZero
		} else if stop, err = c.seek(off, true, end); err != nil {
			break
		}
		list = binary.BigEndian.AppendUint32(list, uint32(stop-off))
		list = binary.BigEndian.AppendUint32(list, state)
		off = stop
		if o.r.flags&cmdFlagReqOne != 0 {
			break
		}
	}
	c.s.post(func() {
		if o.Err = err; err == nil && !c.closed {
			p := c.reserve(structuredSize + 4)
			putStructured(p, chunkDone, chunkBlockStatus, o.r.cookie, uint32(4+len(list)))
			binary.BigEndian.PutUint32(p[structuredSize:], metaAllocationID)
			c.send(list)
			c.finish(o)
			return
		}
		c.done(o)
	})
}

// seek is the first offset from off on that has data (or has none), at most end.
func (c *conn) seek(off int64, hole bool, end int64) (int64, error) {
	at, err := c.export.dev.Seek(c.ctx, off, hole)
	if dataplane.KindOf(err) == dataplane.NotFound {
		return end, nil
	}
	if err != nil {
		return 0, err
	}
	if at < off || at == off && hole {
		return 0, dataplane.E("find what is allocated", dataplane.Internal,
			fmt.Errorf("from %d to %d", off, at))
	}
	return min(at, end), nil
}

// resize starts a RESIZE when those before it have ended: of two at once the metadata servers might
// do the one last, and the file here be told the size of the other last.
func (e *export) resize(o *op) {
	if e.resizes = append(e.resizes, o); len(e.resizes) == 1 {
		go o.c.resize(o)
	}
}

// resize changes the size of the file, and of the device for this connection; others get it when
// they connect anew. It runs on a goroutine of its own.
func (c *conn) resize(o *op) {
	err := c.ctx.Err() // of a client that has gone while this waited
	if err == nil {
		err = c.export.dev.Resize(c.ctx, c.right, o.r.offset)
	}
	c.s.post(func() {
		if o.Err = err; err == nil {
			c.size = o.r.offset
		}
		e := c.export
		if e.resizes = e.resizes[1:]; len(e.resizes) > 0 {
			next := e.resizes[0]
			go next.c.resize(next)
		}
		c.done(o)
	})
}
