package uring

import (
	crand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// LoopOptions are the choices of NewLoop. The zero value is good.
type LoopOptions struct {
	// Ring is how the ring is set up. Flags 0 means DefaultFlags; PlainFlags means none.
	Ring RingOptions
	// PoolSize is the size of the buffer pool in bytes. 0: 64 MiB.
	PoolSize int
	// NoRegister leaves the pool and files unregistered.
	NoRegister bool
	// ConnMemory is how many bytes of address space connections take their own buffers from
	// before they fall back to the Go heap. 0: 1 GiB. Only what is used becomes resident.
	ConnMemory int
	// MaxDiskOps bounds the disk operations in flight of the whole loop; more wait in queues.
	// 0: a quarter of the completion queue.
	MaxDiskOps int
	// DialTimeout bounds Dial. 0: 1.5 s, long enough for one lost packet.
	DialTimeout time.Duration
	// NoLocal has Dial use TCP for processes of the same host, too, and nobody listen for it.
	NoLocal bool
	// NoGather leaves it to the scheduler where the loop runs; see gather.go. The environment
	// variable PSTORAGE_NO_GATHER, if it isn't empty, does so, too.
	NoGather bool
	// WaitFor is how many completions a sleep waits for, if they come within WaitTime of each
	// other. 0: 1. More needs Linux 6.12 and is ignored without.
	WaitFor  uint32
	WaitTime time.Duration
	// SubmitEarly is how many submissions may gather before they are handed over in the middle of
	// a turn, so that disks don't idle while it goes on. 0: 8.
	SubmitEarly int
	// Log is told about fall-backs and trouble. nil: slog.Default().
	Log *slog.Logger
}

// DefaultFlags are the set-up flags of a Loop unless others are asked for: measured best at queue
// depth 1 and for random reads (BenchmarkConn, BenchmarkDiskRandRead), elsewhere equal.
const DefaultFlags = SetupSingleIssuer | SetupDeferTaskrun

// PlainFlags as LoopOptions.Ring.Flags asks for a ring without optional flags.
const PlainFlags = SetupClamp

// ErrStopped is the end of everything that is under way when a loop stops.
var ErrStopped = errors.New("the event loop was stopped")

// Loop is the reactor: one thread, one ring, disks, connections and timers. It implements Env and
// Net. All methods except Post, PostWork, Stop and Done belong to the loop's thread: they are
// called from callbacks, or before Run by whoever calls Run.
//
// A turn is: take completions and call back, run posted work and due timers, and again until
// nothing is ready; then the turn's enders; then one io_uring_enter that submits what all this
// asked for and sleeps until the next completion or timer.
type Loop struct {
	o    LoopOptions
	log  *slog.Logger
	ring *Ring
	pool *Pool
	mem  connMem

	registered bool // the pool
	files      fileTable
	useFiles   bool

	now    int64
	slept  int64 // when the last sleep began
	keeper bool  // see mayKeep
	clock  clock
	rand   *rand.ChaCha8
	timers TimerHeap
	ends   TurnQueue

	slots    []slot
	freeSlot int32
	inFlight int
	endless  int // of those in flight: commands and polls, which a stop doesn't wait for

	cqes     [64]CQE
	deferred []runner // to be run in this turn, after the current callback
	running  []runner
	dirty    []*conn
	flushing []*conn
	conns    []*conn
	socks    map[canceller]struct{} // listeners and dials
	disks    []*ringDisk
	diskOps  int // in flight

	iovs   slab[iovecs]
	sends  slab[sendRec]
	addrs  slab[sockaddr]
	relays relayPool
	zeros  []byte

	wake wakeup

	alarms   alarms
	gatherer gatherer
	state    loopState
	done     chan struct{}

	turns, sqes, completions uint64
}

type loopState uint8

const (
	loopNew loopState = iota
	loopRunning
	loopStopping
	loopStopped
	loopFailed
)

// slot is an operation in flight: who is told about its completion. A CQE carries the slot's
// index and generation, so that it can't reach the wrong one.
type slot struct {
	c    completer
	gen  uint32
	next int32 // free list
	tag  uint8
}

// completer is told about a completion.
type completer interface {
	complete(tag uint8, res int32, flags uint32)
}

// runner is something deferred out of a callback.
type runner interface{ runDeferred() }

// canceller is something to be ended when the loop stops.
type canceller interface {
	cancelAll()
	abandon() // close what is open, nothing is in flight
}

var (
	_ Env = (*Loop)(nil)
	_ Net = (*Loop)(nil)
)

// NewLoop makes a loop. Run it, or Close it.
func NewLoop(o LoopOptions) (*Loop, error) {
	o.setDefaults()
	l := &Loop{o: o, log: o.Log, freeSlot: -1, done: make(chan struct{}),
		socks: map[canceller]struct{}{}}
	l.clock = newClock()
	l.updateNow()
	var seed [32]byte
	_, _ = crand.Read(seed[:]) // never fails
	l.rand = rand.NewChaCha8(seed)

	var err error
	if l.ring, err = NewRing(o.Ring); err != nil {
		return nil, err
	}
	if l.pool, err = NewPool(o.PoolSize); err != nil {
		l.ring.Close()
		return nil, err
	}
	if l.mem.pool, err = NewPool(o.ConnMemory); err != nil {
		l.release()
		return nil, err
	}
	if l.o.MaxDiskOps == 0 {
		l.o.MaxDiskOps = l.ring.CQEntries() / 4
	}
	if !o.NoRegister {
		l.registered = registerPool(l.ring, l.pool, l.log)
		if err := l.files.init(l.ring); err != nil {
			l.log.Warn("files can't be registered with io_uring; going on without", "error", err)
		} else {
			l.useFiles = true
		}
	}
	if err := l.wake.init(l); err != nil {
		l.release()
		return nil, err
	}
	return l, nil
}

func (o *LoopOptions) setDefaults() {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Ring.Log == nil {
		o.Ring.Log = o.Log
	}
	if o.Ring.Flags == 0 {
		o.Ring.Flags = DefaultFlags
	}
	if o.Ring.Flags&SetupSingleIssuer != 0 {
		o.Ring.Flags |= SetupDisabled // enabled by Run, whose thread becomes the issuer
	}
	if o.PoolSize == 0 {
		o.PoolSize = 64 << 20
	}
	if o.ConnMemory == 0 {
		o.ConnMemory = 1 << 30
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 1500 * time.Millisecond
	}
	if o.SubmitEarly == 0 {
		o.SubmitEarly = 8
	}
	if o.WaitFor == 0 {
		o.WaitFor = 1
	}
}

// Pool is the loop's buffer pool.
func (l *Loop) Pool() *Pool { return l.pool }

// Ring is the loop's ring, for its flags and counters.
func (l *Loop) Ring() *Ring { return l.ring }

// Registered says whether the pool is registered with the ring.
func (l *Loop) Registered() bool { return l.registered }

// LoopStats are counters since the start.
type LoopStats struct {
	Turns, Enters, Submissions, Completions, Overflows uint64
	InFlight                                           int

	// Bytes of relays (Relayer) that went through pipes, and that were copied in spite of it.
	RelayPiped, RelayCopied uint64
}

// Stats returns the loop's counters. It belongs to the loop's thread.
func (l *Loop) Stats() LoopStats {
	return LoopStats{Turns: l.turns, Enters: l.ring.Enters, Submissions: l.sqes,
		Completions: l.completions, Overflows: l.ring.Overflows, InFlight: l.inFlight,
		RelayPiped: l.relays.piped, RelayCopied: l.relays.copied}
}

// Now implements Env: a clock that was read after the completion, or the posted work, that is
// being handled had come.
func (l *Loop) Now() int64 { return l.now }

func (l *Loop) updateNow() {
	slept := l.clock.slept
	if l.now = l.clock.now(); l.clock.slept != slept {
		l.alarms = alarms{} // the kernel's timers stood still: they fire later than it says there
	}
}

// Rand implements Env.
func (l *Loop) Rand() uint64 { return l.rand.Uint64() }

// Arm implements Env.
func (l *Loop) Arm(t *Timer, d int64) { l.timers.Arm(t, l.now+d) }

// Disarm implements Env.
func (l *Loop) Disarm(t *Timer) { l.timers.Disarm(t) }

// AtTurnEnd implements Env.
func (l *Loop) AtTurnEnd(e *TurnEnder) { l.ends.Add(e) }

// Run locks the calling goroutine to its thread and runs the loop until Stop. Then connections are
// closed with ErrStopped, disk operations in flight are awaited, queued ones fail with ErrStopped,
// and Run returns nil; any other error is the end of the ring. Run is called once.
func (l *Loop) Run() error {
	if l.state != loopNew {
		panic(fmt.Sprintf("uring: Run of a loop in state %d", l.state))
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(l.done)
	if err := l.ring.Enable(); err != nil {
		return fmt.Errorf("enable the ring: %w", err)
	}
	l.state = loopRunning
	l.keeper = mayKeep(keepers.Add(1))
	defer keepers.Add(-1)
	l.wake.arm(l)
	l.startGathering()
	defer l.endGathering()
	var err error
	for err == nil && !l.wake.stop.Load() {
		err = l.turn()
	}
	if err == nil {
		err = l.drain()
	}
	if err != nil {
		l.state = loopFailed
	}
	return err
}

// drain ends everything that is under way.
func (l *Loop) drain() error {
	l.state = loopStopping
	for len(l.conns) > 0 || len(l.socks) > 0 || l.inFlight > l.endless ||
		len(l.deferred) > 0 {
		for _, c := range append([]*conn(nil), l.conns...) {
			c.Close(ErrStopped)
		}
		for s := range l.socks {
			s.cancelAll()
		}
		for _, d := range l.disks {
			d.failQueued(ErrStopped)
		}
		l.wake.disarm(l)
		if err := l.turn(); err != nil {
			return err
		}
	}
	l.state = loopStopped
	return nil
}

// maxRounds bounds how often a turn looks for new work before it submits what it has.
const maxRounds = 8

// turn does all there is to do, then sleeps. The clock is read after each look for work that found
// some, not once: the process may be stopped at any moment (SIGSTOP, a freezer, a paused virtual
// machine), and a request that came meanwhile is taken by the turn that goes on then. A chunk
// server compares its lease with the clock, which mustn't be that of before.
func (l *Loop) turn() error {
	l.turns++
	for round := 0; ; round++ {
		work := l.reap(round == 0) + l.wake.run(l) + l.fireTimers() + l.runDeferred()
		if work > 0 && round < maxRounds {
			continue
		}
		if l.ends.Empty() {
			break
		}
		l.ends.Run()
		if round >= maxRounds {
			break
		}
	}
	l.flush()
	return l.enter()
}

// enter submits and sleeps.
func (l *Loop) enter() error {
	if len(l.deferred) > 0 || !l.ends.Empty() || l.ring.Ready() > 0 || len(l.dirty) > 0 {
		return l.ring.Submit()
	}
	if l.state == loopStopping && l.inFlight == l.endless {
		return l.ring.Submit()
	}
	l.gather()
	timeout := Forever
	if when, ok := l.timers.Next(); ok && l.state == loopRunning {
		timeout = max(0, when-l.now)
	}
	if timeout == 0 || !l.wake.prepareSleep() {
		return l.ring.Submit()
	}
	defer l.wake.awake()
	if timeout > 0 && l.setAlarm(timeout) {
		timeout = Forever
	}
	waitFor, minWait := uint32(1), int64(0)
	if l.o.WaitFor > 1 && l.ring.features&featMinTimeout != 0 {
		waitFor, minWait = l.o.WaitFor, int64(l.o.WaitTime)
	}
	// After a long sleep another one is likely: then the scheduler gets the processor back.
	l.ring.KeepProc = l.keeper && l.now-l.slept < int64(briefSleep)
	l.slept = l.now
	return l.ring.Wait(waitFor, timeout, minWait)
}

// briefSleep is up to how long after its last sleep began a loop counts as busy.
const briefSleep = 2 * time.Millisecond

// keepers counts the loops that keep their processor of the Go scheduler while they sleep.
var keepers atomic.Int32

// mayKeep says whether one more loop may do so: goroutines must have as many processors left as
// there are CPUs. Programs with a loop ask for more of them (cmd/cli.SpareProcs).
func mayKeep(loops int32) bool { return int(loops) <= runtime.GOMAXPROCS(0)-runtime.NumCPU() }

// reap takes all completions and calls back. The first of a turn reads the clock in any case.
func (l *Loop) reap(first bool) int {
	total := 0
	for {
		n := l.ring.Reap(l.cqes[:])
		if n > 0 || first {
			l.updateNow() // after they were taken
			first = false
		}
		for i := range l.cqes[:n] {
			c := &l.cqes[i]
			l.dispatch(c.UserData(), c.Result(), c.Flags())
			if l.ring.Unsubmitted() >= l.o.SubmitEarly {
				l.submitEarly()
			}
		}
		total += n
		if n < len(l.cqes) {
			l.completions += uint64(total)
			return total
		}
	}
}

// submitEarly gives the disks something to do while the rest of a long turn goes on.
func (l *Loop) submitEarly() {
	if err := l.ring.Submit(); err != nil {
		l.log.Error("submit", "error", err)
	}
}

func (l *Loop) dispatch(userData uint64, res int32, flags uint32) {
	if userData == 0 {
		return // nobody waits for it
	}
	i, gen := int32(userData), uint32(userData>>32)
	if int(i) >= len(l.slots) || l.slots[i].gen != gen || l.slots[i].c == nil {
		panic(fmt.Sprintf("uring: completion %#x (result %d, flags %#x) of no operation",
			userData, res, flags))
	}
	s := &l.slots[i]
	c, tag := s.c, s.tag
	if flags&CQEMore == 0 {
		s.c = nil
		s.next = l.freeSlot
		l.freeSlot = i
		l.inFlight--
	}
	c.complete(tag, res, flags)
}

// start names the operation in s: c.complete(tag, ...) is called when it is done. It returns the
// user data, by which it can be cancelled.
func (l *Loop) start(s *SQE, c completer, tag uint8) uint64 {
	i := l.freeSlot
	if i < 0 {
		i = int32(len(l.slots))
		l.slots = append(l.slots, slot{})
	} else {
		l.freeSlot = l.slots[i].next
	}
	t := &l.slots[i]
	t.gen++
	if t.gen == 0 {
		t.gen = 1
	}
	t.c, t.tag = c, tag
	l.inFlight++
	l.sqes++
	userData := uint64(t.gen)<<32 | uint64(uint32(i))
	s.SetUserData(userData)
	return userData
}

// sqe returns a free submission entry. If the queue is full it is submitted first. nil: the kernel
// takes no more now, or the loop doesn't run yet; the caller comes back at the end of the turn.
func (l *Loop) sqe() *SQE {
	s := l.ring.SQE()
	if s == nil && l.state != loopNew {
		if err := l.ring.Submit(); err != nil {
			l.log.Error("submit", "error", err)
		}
		s = l.ring.SQE()
	}
	return s
}

// cancel asks the kernel to end an operation. It is only asked: the completion comes as ever.
func (l *Loop) cancel(userData uint64) bool {
	s := l.sqe()
	if s == nil {
		return false
	}
	PrepCancel(s, userData)
	s.SetUserData(0)
	return true
}

// fireTimers fires what is due. Timers armed meanwhile with no delay fire in the next round.
func (l *Loop) fireTimers() int {
	if l.state != loopRunning {
		return 0
	}
	n := 0
	for ; n < 1000; n++ {
		t := l.timers.Pop(l.now)
		if t == nil {
			break
		}
		t.Fire()
	}
	return n
}

func (l *Loop) runDeferred() int {
	n := len(l.deferred)
	if n == 0 {
		return 0
	}
	l.running, l.deferred = l.deferred, l.running[:0]
	for i, r := range l.running {
		l.running[i] = nil
		r.runDeferred()
	}
	return n
}

// later runs r in this turn or the next, outside the current callback.
func (l *Loop) later(r runner) { l.deferred = append(l.deferred, r) }

// flush turns what callbacks asked for into submissions.
func (l *Loop) flush() {
	l.flushing, l.dirty = l.dirty, l.flushing[:0]
	for i, c := range l.flushing {
		l.flushing[i] = nil
		c.dirty = false
		c.flush()
	}
	for _, d := range l.disks {
		d.issueQueued()
	}
}

// addFile names an open file for operations.
func (l *Loop) addFile(fd int) File {
	if !l.useFiles {
		return FD(fd)
	}
	return l.files.add(fd)
}

func (l *Loop) closeFile(f File) error {
	if f.index >= 0 && l.state != loopStopped && l.state != loopFailed {
		l.files.remove(f) // afterwards the whole table goes, with the ring
	}
	return unix.Close(int(f.fd))
}

// Close releases a loop that isn't running: before Run, or after it returned. It fails if buffers
// of the pool are still held.
func (l *Loop) Close() error {
	if l.state == loopRunning || l.state == loopStopping {
		panic("uring: Close of a running loop")
	}
	if n := l.pool.InUse(); n != 0 {
		return fmt.Errorf("close the event loop: %d bytes of its buffers are still held", n)
	}
	l.release()
	return nil
}

func (l *Loop) release() {
	for _, d := range l.disks {
		_ = unix.Close(int(d.file.fd)) // not closed by its owner
		d.l = nil
	}
	for s := range l.socks {
		s.abandon() // Run was never called
	}
	l.disks, l.socks = nil, nil
	l.ring.Close()
	if l.state == loopFailed {
		return // operations may be in flight: their memory stays mapped
	}
	l.state = loopStopped
	l.wake.close()
	l.iovs.unmap()
	l.sends.unmap()
	l.addrs.unmap()
	l.relays.close()
	if l.zeros != nil {
		_ = unix.Munmap(l.zeros)
	}
	for _, p := range []*Pool{l.pool, l.mem.pool} {
		if p != nil && p.InUse() == 0 {
			_ = p.Close()
		}
	}
}
