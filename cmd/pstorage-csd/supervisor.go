package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"sync"
	"time"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
)

// The supervisor, from top to bottom:
//
//  1. watch reads the cs.list of every chosen cluster, twice a second;
//  2. for a new line it starts keep; one whose line is gone it stops, once that has been so for
//     goneAfter: a file that is just being written may be short, or empty, for a moment;
//  3. keep runs one child after the other for its directory: a crashed one is replaced at once,
//     one that crashes again soon after waits longer and longer, one that refuses its directory
//     isn't replaced;
//  4. when a child has exited, crashed or as it was asked to, that is certified to the metadata
//     servers: that very process (id and boot counter, as it told us itself) is gone. They then
//     needn't wait for its lease to run out, only a moment in which it may be back.
const (
	watchEvery  = 500 * time.Millisecond
	goneAfter   = 2 * time.Second
	firstDelay  = 100 * time.Millisecond // before the second restart in a row; the first has none
	maxDelay    = 5 * time.Second
	stableAfter = time.Second      // a child that lived this long starts the delays anew
	stopWithin  = 20 * time.Second // from SIGTERM to SIGKILL
	// readyWithin is how long a child that neither serves nor ends, as on a disk that hangs, keeps
	// this process from being ready. It is less than the service manager's patience, whose end would
	// be that of all children.
	readyWithin = 5 * time.Minute

	tellStopWithin = 500 * time.Millisecond
)

// place is one line of a cs.list.
type place struct {
	cluster string
	daemon  cluster.Daemon
}

// incarnation is one process of a chunk server, as the metadata servers know it.
type incarnation struct {
	CS   dataplane.CSID
	Boot uint64
	// Refusal is why it won't serve its directory; RefusedCS whose that is, 0 if it can't know.
	Refusal   string
	RefusedCS dataplane.CSID
}

// supervisor runs one child per place. Its fields are set once, before run.
type supervisor struct {
	log  *slog.Logger
	list func() ([]place, error) // what should run
	// command returns the child's command; the child tells by file descriptor 3 who it is.
	command func(place) *exec.Cmd
	// certify tells the metadata servers of place's cluster that a process has exited. It returns
	// when they know, or ctx has ended.
	certify func(ctx context.Context, p place, who incarnation, planned bool)
	// refuse tells them, until ctx ends, that nobody serves p. May be nil.
	refuse func(ctx context.Context, p place, who incarnation)
	// ready is called once: every child of the first list is ready, or refused to serve, or ended,
	// or has taken longer than readyWithin.
	ready func()
	wake  <-chan struct{}
	// pings are answered by closing them, with each turn of run. May be nil.
	pings <-chan chan struct{}
	beats beats

	spawner *cli.Spawner
	leaving []*keeper // stopped, with a child that may not have exited yet
	keepers sync.WaitGroup
	waiting sync.WaitGroup // for the first state of each child of the first list
}

type keeper struct {
	dir  string
	stop context.CancelFunc
	done chan struct{} // closed when its last child has exited
	gone time.Time     // since when its line is no longer in the list; zero: it is
	// again has the keeper of a directory that was refused, or that waits, try at once.
	again chan struct{}
}

// run supervises until ctx ends, then stops all children and returns.
func (s *supervisor) run(ctx context.Context) error {
	running := make(map[place]*keeper)
	first := true
	var lastErr string
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		places, err := s.list()
		switch {
		case err != nil && first:
			return err
		case err != nil:
			if err.Error() != lastErr { // said once, not twice a second
				s.log.Error("cannot read the list of chunk servers; what runs goes on", "err", err)
			}
			lastErr = err.Error()
		default:
			lastErr = ""
			s.follow(ctx, running, places, first)
		}
		if first {
			first = false
			go func() {
				s.waiting.Wait()
				s.ready()
			}()
		}
		select {
		case <-ctx.Done():
			s.keepers.Wait()
			return nil
		case <-tick.C:
		case ping := <-s.pings:
			close(ping)
		case <-s.wake: // look again at what refused to serve
			for p, k := range running {
				if k.ended() {
					delete(running, p)
				}
				select {
				case k.again <- struct{}{}:
				default: // told already
				}
			}
		}
	}
}

func (k *keeper) ended() bool {
	select {
	case <-k.done:
		return true
	default:
		return false
	}
}

// follow makes running what places says. The children of the first list are waited for.
func (s *supervisor) follow(ctx context.Context, running map[place]*keeper, places []place,
	first bool) {
	for p, k := range running {
		if slices.Contains(places, p) {
			k.gone = time.Time{}
			continue
		}
		if k.gone.IsZero() {
			k.gone = time.Now()
		}
		// A new line for the same directory can't wait.
		replaced := slices.ContainsFunc(places, func(o place) bool {
			return o.daemon.Dir == p.daemon.Dir
		})
		if replaced || time.Since(k.gone) >= goneAfter {
			s.log.Info("no longer in the list: stopping", "cluster", p.cluster, "dir", p.daemon.Dir)
			k.stop()
			delete(running, p)
			s.beats.forget(p)
			s.leaving = append(s.leaving, k)
		}
	}
	s.leaving = slices.DeleteFunc(s.leaving, (*keeper).ended)
	for _, p := range places {
		if running[p] != nil {
			continue
		}
		keepCtx, stop := context.WithCancel(ctx)
		k := &keeper{dir: p.daemon.Dir, stop: stop, done: make(chan struct{}),
			again: make(chan struct{}, 1)}
		running[p] = k
		settled := func() {}
		if first {
			s.waiting.Add(1)
			settled = sync.OnceFunc(s.waiting.Done)
			time.AfterFunc(readyWithin, settled)
		}
		before := s.leavers(p.daemon.Dir)
		s.keepers.Go(func() {
			defer close(k.done)
			defer settled()
			defer stop()
			for _, other := range before { // one process at a time has a directory
				<-other.done
			}
			s.keep(keepCtx, p, k.again, settled)
		})
	}
}

// leavers returns the keepers of dir that have been stopped and may still have a child.
func (s *supervisor) leavers(dir string) []*keeper {
	var found []*keeper
	for _, k := range s.leaving {
		if k.dir == dir {
			found = append(found, k)
		}
	}
	return found
}

// keep has one child running for p until ctx ends or a child refuses. settled is called when the
// first child is ready, or has ended.
func (s *supervisor) keep(ctx context.Context, p place, again <-chan struct{}, settled func()) {
	log := s.log.With("cluster", p.cluster, "dir", p.daemon.Dir)
	delay := time.Duration(0)
	for {
		started := time.Now()
		who, err := s.runChild(ctx, log, p, settled)
		lived := time.Since(started)
		planned := ctx.Err() != nil
		if who.CS != 0 {
			s.certifySoon(p, who, planned)
		}
		if planned {
			log.Info("chunk server stopped", "cs", who.CS)
			return
		}
		if refused(err) {
			log.Error("the chunk server refuses to serve this directory and is not started again; "+
				"when the cause is mended send this process SIGHUP, or restart it", "err", err,
				"reason", who.Refusal)
			settled()
			if s.refuse == nil || !s.refusing(ctx, p, who, again) {
				return
			}
			delay = 0
			continue
		}
		if lived >= stableAfter {
			delay = 0
		}
		settled() // the others needn't wait for what may never be
		log.Warn("the chunk server's process ended; starting it again",
			"cs", who.CS, "boot", who.Boot, "err", err, "lived", lived.Round(time.Millisecond),
			"in", delay)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		case <-again: // somebody knows that what stood in the way is gone
			delay = 0
		}
		delay = nextDelay(delay)
	}
}

// refusing tells the metadata servers of a directory that isn't served until somebody wants it
// tried again, which it says, or ctx ends.
func (s *supervisor) refusing(ctx context.Context, p place, who incarnation,
	again <-chan struct{}) bool {
	select {
	case <-again: // from before
	default:
	}
	telling, stop := context.WithCancel(ctx)
	defer stop()
	if who.Refusal != "" {
		s.keepers.Go(func() { s.refuse(telling, p, who) })
	}
	select {
	case <-ctx.Done():
		return false
	case <-again:
		return true
	}
}

// nextDelay returns how long to wait before the restart after the one that waited delay.
func nextDelay(delay time.Duration) time.Duration {
	if delay == 0 {
		return firstDelay
	}
	return min(2*delay, maxDelay)
}

// refused says whether a child's exit means that another would only do the same.
func refused(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == cli.ExitRefuse
}

// certifySoon certifies an exit without holding up the restart.
func (s *supervisor) certifySoon(p place, who incarnation, planned bool) {
	s.keepers.Go(func() {
		// A lease later the metadata servers know by themselves. A stop isn't held up for long: they
		// may have been stopped as well.
		within := dataplane.LeaseTime
		if planned {
			within = tellStopWithin
		}
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		s.certify(ctx, p, who, planned)
	})
}

func (p place) String() string { return fmt.Sprintf("%s (cluster %s)", p.daemon.Dir, p.cluster) }
