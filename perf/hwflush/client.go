package hwflush

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Sync is how a record is made durable.
type Sync string

// The ways to make a record durable.
const (
	Fdatasync Sync = "fdatasync" // write, then fdatasync
	Dsync     Sync = "dsync"     // one write with O_DSYNC
)

// Options of a client. Server, Path and Name are needed.
type Options struct {
	Server string        // "host:port"
	Path   string        // a directory on the disk, a file, or a block device
	Name   string        // by which the server knows this client: at most 64 bytes
	Size   int64         // bytes of the area; 0: 64 MiB
	Sync   Sync          // "": Fdatasync
	Time   time.Duration // 0: until ctx ends
	// Progress is told about once a second; nil: nobody.
	Progress func(Stats)
}

// Stats are what a client did.
type Stats struct {
	Acknowledged uint64 // by the disk
	Reported     uint64 // of these, confirmed by the server
	Seconds      float64
	Rate         float64 // records per second
}

const (
	window     = 32 // numbers that may be ahead of what the server has confirmed
	dialWithin = 10 * time.Second
	defaultSz  = 64 << 20
)

func (o *Options) check() error {
	switch {
	case o.Name == "" || len(o.Name) > maxName:
		return fmt.Errorf("name %q: must have 1 to %d bytes", o.Name, maxName)
	case o.Sync == "":
		o.Sync = Fdatasync
	case o.Sync != Fdatasync && o.Sync != Dsync:
		return fmt.Errorf("%q isn't a way to make a record durable: fdatasync or dsync", o.Sync)
	}
	if o.Size == 0 {
		o.Size = defaultSz
	}
	return nil
}

func dial(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("reach the server: %w", err)
	}
	return c, nil
}

// Run writes and reports records until ctx ends, its time is over, or something fails: the disk,
// or the connection to the server. It never ends well in a power cut.
func Run(ctx context.Context, o Options) (stats Stats, err error) {
	if err := o.check(); err != nil {
		return stats, err
	}
	flags := 0
	if o.Sync == Dsync {
		flags = syscall.O_DSYNC
	}
	f, slots, err := openArea(areaPath(o.Path), o.Size, flags)
	if err != nil {
		return stats, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	c, err := dial(ctx, o.Server)
	if err != nil {
		return stats, err
	}
	defer c.Close()
	w := &writer{o: o, f: f, c: c, slots: slots, confirmed: make(chan struct{}, 1)}
	rand.Read(w.session[:]) // never fails
	begin := message{kind: msgBegin, session: w.session, slots: slots, window: window, name: o.Name}
	if err := begin.send(c); err != nil {
		return stats, err
	}
	if _, err := expect(c, msgOK); err != nil {
		return stats, fmt.Errorf("server %s: %w", o.Server, err)
	}
	return w.run(ctx)
}

// writer is a client at work: one goroutine writes and reports, one receives confirmations.
type writer struct {
	o       Options
	f       *os.File
	c       net.Conn
	session Session
	slots   uint64

	acked     atomic.Uint64 // by the server
	confirmed chan struct{} // capacity 1: acked has changed, or the connection has ended
	lost      atomic.Pointer[error]
}

func (w *writer) run(ctx context.Context) (Stats, error) {
	if w.o.Time > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, w.o.Time)
		defer cancel()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer w.c.Close()
	wg.Go(w.receive)
	begun := time.Now()
	told := begun
	stats := func(number uint64) Stats {
		seconds := time.Since(begun).Seconds()
		return Stats{number, w.acked.Load(), seconds, float64(number) / max(seconds, 1e-9)}
	}
	buf := make([]byte, recordSize)
	for number := uint64(1); ; number++ {
		if err := w.wait(ctx, number); err != nil || ctx.Err() != nil {
			return stats(number - 1), err
		}
		if err := w.write(buf, number); err != nil {
			return stats(number - 1), err
		}
		report := message{kind: msgReport, session: w.session, number: number}
		if err := report.send(w.c); err != nil {
			return stats(number), fmt.Errorf("report to the server: %w", err)
		}
		if w.o.Progress != nil && time.Since(told) >= time.Second {
			told = time.Now()
			w.o.Progress(stats(number))
		}
	}
}

// wait returns when number may be written, or ctx has ended.
func (w *writer) wait(ctx context.Context, number uint64) error {
	for number > w.acked.Load()+window {
		select {
		case <-ctx.Done():
			return nil
		case <-w.confirmed:
		}
		if err := w.lost.Load(); err != nil {
			return fmt.Errorf("connection to the server: %w", *err)
		}
	}
	return nil
}

// write makes a record durable.
func (w *writer) write(buf []byte, number uint64) error {
	r := record{w.session, number, w.slots, uint64(time.Now().UnixNano())}
	r.put(buf)
	_, err := w.f.WriteAt(buf, int64(number%w.slots)*recordSize)
	if err == nil && w.o.Sync == Fdatasync {
		err = syscall.Fdatasync(int(w.f.Fd()))
	}
	if err != nil {
		return fmt.Errorf("write record %d to %s: %w", number, w.f.Name(), err)
	}
	return nil
}

// receive takes confirmations until the connection ends.
func (w *writer) receive() {
	for {
		m, err := expect(w.c, msgOK)
		if err != nil {
			w.lost.Store(&err)
		} else {
			w.acked.Store(m.number)
		}
		select {
		case w.confirmed <- struct{}{}:
		default: // it will see this one, too
		}
		if err != nil {
			return
		}
	}
}

// Verify asks the server what the disk had acknowledged, compares what is on the disk, and tells
// the server the outcome. An area that is gone counts as lost in full.
func Verify(ctx context.Context, o Options) (v Verdict, err error) {
	if err := o.check(); err != nil {
		return v, err
	}
	c, err := dial(ctx, o.Server)
	if err != nil {
		return v, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	ask := message{kind: msgAsk, name: o.Name}
	if err := ask.send(c); err != nil {
		return v, err
	}
	state, err := expect(c, msgState)
	if err != nil {
		return v, fmt.Errorf("server %s: %w", o.Server, err)
	}
	if state.slots < minSlots || state.slots > maxSlots || state.window > state.slots/2 {
		return v, fmt.Errorf("server %s: %w", o.Server, errMessage)
	}
	if state.number == 0 {
		return v, errors.New("no record was acknowledged in the last run: there is nothing to verify")
	}
	if v, err = look(areaPath(o.Path), &state); err != nil {
		return v, err
	}
	outcome := message{kind: msgVerdict, session: state.session, number: v.Newest, slots: v.Lost,
		name: o.Name}
	if err := outcome.send(c); err != nil {
		return v, err
	}
	_, err = expect(c, msgOK)
	return v, err
}

// look compares the file or device at path with what the server knows.
func look(path string, state *message) (Verdict, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return compare(nothing{}, state.session, state.number, state.slots, state.window)
	}
	if err != nil {
		return Verdict{}, err
	}
	defer f.Close()
	return compare(f, state.session, state.number, state.slots, state.window)
}

// nothing is a file without data.
type nothing struct{}

func (nothing) ReadAt([]byte, int64) (int, error) { return 0, nil }

// Implausible says in words why a disk can hardly make so many single records a second durable;
// empty if it can. rotating is whether the disk has platters, as far as is known.
func Implausible(rate float64, rotating bool) string {
	// A platter passes the head at most 250 times a second (15,000/min), and a record that is
	// overwritten or follows the last one waits for that. An SSD without a protected cache needs
	// about 30 µs at the very least to write to flash.
	switch {
	case rotating && rate > 500:
		return fmt.Sprintf("%.0f durable records a second are more than a rotating disk can do", rate)
	case rate > 40000:
		return fmt.Sprintf("%.0f durable records a second are more than flash can do", rate)
	}
	return ""
}
