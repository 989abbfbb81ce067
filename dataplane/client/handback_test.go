package client

import (
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// leaser hands out leases as the metadata servers do, to the one client of a world.
type leaser struct {
	w      *world
	token  uint64              // last one given
	holder uint64              // token of the grant that holds; 0: nobody
	fenced bool                // the fence of the holder before is in force
	lose   int                 // so many answers to questions are lost
	gone   []control.FileLease // that were given back
	other  bool                // another client holds it
}

// answer runs cb on the client after both ways.
func (m *leaser) answer(cb func()) { m.w.sim.After(m.w.meta.delay, func() { m.w.env.Post(cb) }) }

// AcquireLease implements Leaser.
func (m *leaser) AcquireLease(_ dataplane.FileID, token uint64,
	cb func(*control.LeaseReply, error)) {
	m.w.sim.After(m.w.meta.delay, func() {
		if m.other {
			m.answer(func() { cb(&control.LeaseReply{Holder: 9}, nil) })
			return
		}
		if m.holder == 0 || m.holder != token {
			m.token++
			m.holder = m.token
		}
		r := &control.LeaseReply{Token: m.holder, Granted: m.fenced, Fencing: !m.fenced}
		if m.lose > 0 {
			m.lose--
			err := dataplane.E("acquire a write lease", dataplane.TimedOut, nil)
			m.answer(func() { cb(nil, err) })
			return
		}
		m.answer(func() { cb(r, nil) })
	})
}

// ReleaseLeases implements Leaser.
func (m *leaser) ReleaseLeases(list []control.FileLease, cb func(error)) {
	m.w.sim.After(m.w.meta.delay, func() {
		m.gone = append(m.gone, list...)
		for _, l := range list {
			if l.Token == m.holder {
				m.holder = 0
			}
		}
		m.answer(func() { cb(nil) })
	})
}

// RenewLeases implements Leaser.
func (m *leaser) RenewLeases([]control.FileLease, func(*control.RenewLeasesReply, error)) {}

// writer begins a use of the file that may write, as OpenForWrite does; the result ends it, as
// CloseForWrite does.
func (w *world) writer(f *File) (end func()) {
	w.env.Do(func() {
		f.lease.writers++
		f.reopened()
		f.askLease()
	})
	return func() {
		w.env.Do(func() {
			f.lease.writers--
			f.dropLease()
		})
	}
}

// pass lets ns pass.
func (w *world) pass(ns int64) {
	w.sim.After(ns, func() {}) // time goes by though there is nothing to do
	w.sim.Run(func() bool { return false }, w.sim.Now()+ns)
}

// TestOpenedAgainWhileFencing: a file is opened for writing, closed and opened again while the
// writer before it, on another host, is still being fenced. The lease of the second open isn't
// given back on behalf of the first one: another host could have the file then, and both would
// write.
func TestOpenedAgainWhileFencing(t *testing.T) {
	for seed := range uint64(8) {
		w := newWorld(t, seed, 3)
		m := &leaser{w: w}
		first := w.file(0)
		w.eng.leases.meta = m
		end := w.writer(first)
		w.pass(20e6)
		end()
		second, err := w.eng.OpenFile(&control.Attr{File: first.id, Type: control.TypeFile}, "again")
		if err != nil {
			t.Fatal(err)
		}
		w.writer(second)
		w.pass(300e6)
		m.fenced = true
		w.pass(3e9)
		if second.lease.status != leaseHeld || second.lease.token != m.holder {
			t.Errorf("seed %d: the file that is open has status %d and token %d; the metadata servers "+
				"say token %d", seed, second.lease.status, second.lease.token, m.holder)
		}
	}
}

// TestLostGrantIsGivenBack: the answer that grants the lease is lost, and the file is closed before
// the client asks again. The lease is given back all the same: as long as this client lives nobody
// else would get the file.
func TestLostGrantIsGivenBack(t *testing.T) {
	w := newWorld(t, 1, 3)
	m := &leaser{w: w, fenced: true, lose: 1}
	f := w.file(0)
	w.eng.leases.meta = m
	w.writer(f)()
	if w.pass(3e9); m.token == 0 || m.holder != 0 {
		t.Errorf("last token %d, held: %d", m.token, m.holder)
	}
}

// TestRefusalIsForgotten: another client was in the way of writes once. Writes after a while, or
// after the file was opened anew, wait as the first one did, as in a live migration; those that
// come one after the other fail at once.
func TestRefusalIsForgotten(t *testing.T) {
	w := newWorld(t, 1, 3)
	m := &leaser{w: w, fenced: true, other: true}
	f := w.file(0)
	w.eng.leases.meta = m
	w.writer(f)
	wait := int64(w.eng.opt.LeaseWait)
	refused := func(atOnce bool, when string) {
		t.Helper()
		op, began := &Op{Kind: Write, File: f, Buf: make([]byte, 4096)}, w.sim.Now()
		w.run(op)
		if dataplane.KindOf(op.Err) != dataplane.LeaseHeld {
			t.Fatalf("%s: %v", when, op.Err)
		}
		if d := w.sim.Now() - began; atOnce != (d < wait/2) {
			t.Errorf("%s: refused after %v", when, time.Duration(d))
		}
	}
	refused(false, "the first write")
	refused(true, "the second write")
	w.pass(wait * 3 / 4)
	refused(true, "a write soon after it")
	w.pass(wait * 3 / 4)
	refused(true, "a write soon after that one")
	w.writer(f)
	refused(false, "opened anew")
	w.pass(int64(time.Hour))

	op := &Op{Kind: Write, File: f, Buf: make([]byte, 4096)}
	done := w.start(op)
	w.pass(50e6)
	if *done != 0 {
		t.Fatalf("a write 50 ms before the hand-over: %v", op.Err)
	}
	w.writer(f) // an open while writes wait doesn't make them wait longer
	w.pass(wait / 2)
	m.other = false
	w.pass(3e9)
	if *done != 1 || op.Err != nil {
		t.Fatalf("after the hand-over: %d done, %v", *done, op.Err)
	}
}

// renewing are metadata servers that know of no lost lease.
type renewing struct{ *leaser }

// RenewLeases implements Leaser.
func (m renewing) RenewLeases(_ []control.FileLease, cb func(*control.RenewLeasesReply, error)) {
	m.answer(func() { cb(&control.RenewLeasesReply{}, nil) })
}

// TestRenewedGrantIsUnclean: a write is given up, or not done yet, when the right to write is
// renewed and then given back. It may still arrive: the next writer must have it fenced.
func TestRenewedGrantIsUnclean(t *testing.T) {
	for _, test := range []struct{ cancel, closed bool }{{true, false}, {true, true},
		{false, false}, {false, true}} {
		w, f, _, _ := with(t)
		m := &leaser{w: w, fenced: true}
		w.eng.leases.meta = renewing{m}
		end := w.writer(f)
		w.pass(20e6)
		for _, cs := range w.cs {
			cs.stuck = true
		}
		op := &Op{Kind: Write, File: f, Buf: w.random(4096)}
		w.start(op)
		w.pass(20e6)
		w.env.Do(func() {
			if test.cancel {
				w.eng.Cancel(op)
			}
			f.maybeCut()
		})
		if !test.closed {
			w.pass(20e6)
		}
		end()
		w.pass(20e6)
		if len(m.gone) != 1 || m.gone[0].Token != m.token || !m.gone[0].Unclean {
			t.Errorf("%+v: given back: %+v", test, m.gone)
		}
	}
}

// strictMeta are metadata servers that refuse a Grow that isn't by the last grant.
type strictMeta struct {
	*fakeMeta
	renewing
	bare *int // Grows without a grant
}

// Grow implements Metadata.
func (m strictMeta) Grow(file dataplane.FileID, size, token uint64,
	cb func(*control.Attr, error)) {
	if token == 0 {
		*m.bare++
	}
	if token != m.holder {
		m.answer(func() { cb(nil, dataplane.E("grow", dataplane.Fenced, nil)) })
		return
	}
	m.fakeMeta.Grow(file, size, token, cb)
}

// TestGrantThatIsntKnown: the metadata servers have granted the right to write once more than is
// known here, as by a request of this client that was done twice. A write that makes the file
// longer gets on.
func TestGrantThatIsntKnown(t *testing.T) {
	for _, opened := range []bool{true, false} { // for writing
		m := strictMeta{renewing: renewing{&leaser{fenced: true}}, bare: new(int)}
		w := newWorld(t, 1, 3, func(o *Options) {
			m.fakeMeta = o.Meta.(*fakeMeta)
			m.leaser.w = m.fakeMeta.w
			o.Meta = m
		})
		f := w.file(0)
		if opened {
			w.writer(f)
		}
		w.write(f, 0, w.random(4096))
		m.token++
		m.holder = m.token
		m.fakeMeta.delay = 30e6 // asking takes longer than until the next try
		w.write(f, 4096, w.random(4096))
		if size := w.meta.files[f.id].size; size != 8192 || *m.bare > 0 {
			t.Errorf("the file has %d bytes; %d Grows by no right to write", size, *m.bare)
		}
		if len(m.gone) != 0 {
			t.Errorf("given back: %+v", m.gone)
		}
	}
}
