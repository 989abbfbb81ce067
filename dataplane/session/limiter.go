package session

import (
	"errors"
	"net/netip"
	"sync"

	"pstorage/dataplane"
)

// Limits of failed authentications. They count for each address by itself; an IPv6 address counts
// as its /64. Others may have the same one, such as all processes of a host, or all hosts behind a
// router: so who names a key of the cluster's is only kept out by those that have done so, too, and
// failed; and who has the password, by wrong passwords.
const (
	failBurst  = 20    // failures of keys that an address has at once ...
	failEvery  = 500e6 // ... and it gains one every so many ns
	passBurst  = 5     // wrong passwords
	passEvery  = 10e9  // ns
	maxSources = 4096  // addresses that are remembered; the least recent goes
	logEvery   = 10e9  // ns between two lines about the same thing
	logBurst   = 20    // lines about handshakes that broke off; then one every logEvery
)

var errTooMany = errors.New("too many failed attempts from this address")

// Failures bounds how fast each address may fail: it has a number of attempts at once, and gains
// one every so often. It is safe for concurrent use.
type Failures struct {
	burst, every float64
	now          func() int64
	named        *Failures // those of keys that are accepted; nil: of passwords

	mu      sync.Mutex // guards what follows
	sources map[netip.Addr]*source
	broken  struct { // handshakes that broke off, of all addresses: it needs no key to make them
		lines float64 // that were written, less what time has forgiven
		atNs  int64
	}
}

// source is an address that has failed.
type source struct {
	left     float64 // attempts
	atNs     int64   // when left was right
	loggedNs int64
}

// NewFailures returns the limits for handshakes. now is a monotonic clock in ns.
func NewFailures(now func() int64) *Failures {
	f := newFailures(failBurst, failEvery, now)
	f.named = newFailures(failBurst, failEvery, now)
	return f
}

// NewPasswordFailures returns the limits for passwords.
func NewPasswordFailures(now func() int64) *Failures {
	return newFailures(passBurst, passEvery, now)
}

func newFailures(burst, every float64, now func() int64) *Failures {
	return &Failures{burst: burst, every: every, now: now, sources: make(map[netip.Addr]*source)}
}

// quiet is Handshake.quiet for a connection from an address; nil: it may try as others do. f may be
// nil.
func (f *Failures) quiet(remote string) func() bool {
	if f == nil || f.Allow(remote) {
		return nil
	}
	return func() bool { return f.named.Allow(remote) }
}

// ended counts a failed handshake if it is one of keys, named or not, and says whether to write
// about it.
func (f *Failures) ended(remote string, err error, named bool) (log bool) {
	if errors.Is(err, errTooMany) {
		return false
	}
	if named {
		f.named.Failed(remote, err)
	}
	return f.Failed(remote, err)
}

// addrOf is what an "ip:port" counts as.
func addrOf(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{} // a unix socket: all count as one
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// at returns the source as it is now, or nil if it hasn't failed lately. mu is held.
func (f *Failures) at(a netip.Addr, now int64) *source {
	s := f.sources[a]
	if s == nil {
		return nil
	}
	s.left += float64(now-s.atNs) / f.every
	s.atNs = now
	if s.left >= f.burst {
		delete(f.sources, a)
		return nil
	}
	return s
}

// Allow says whether a connection from an address may try now.
func (f *Failures) Allow(remote string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.allow(addrOf(remote), f.now())
}

// allow is Allow while mu is held.
func (f *Failures) allow(a netip.Addr, now int64) bool {
	s := f.at(a, now)
	return s == nil || s.left >= 1
}

// Take counts an attempt in advance, if one is left; see GiveBack. A nil f has always one.
func (f *Failures) Take(remote string) bool {
	if f == nil {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a, now := addrOf(remote), f.now()
	if !f.allow(a, now) {
		return false
	}
	f.count(a, now, 1)
	return true
}

// GiveBack returns an attempt that didn't fail.
func (f *Failures) GiveBack(remote string) {
	if f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.count(addrOf(remote), f.now(), -1)
	}
}

// Failed counts a failed handshake if it is one of keys, and says whether to write about it.
func (f *Failures) Failed(remote string, err error) (log bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if k := dataplane.KindOf(err); k != dataplane.Denied && k != dataplane.WrongCluster {
		b := &f.broken
		b.lines = max(b.lines-float64(now-b.atNs)/logEvery, 0)
		b.atNs = now
		if b.lines > logBurst-1 {
			return false
		}
		b.lines++
		return true
	}
	return f.count(addrOf(remote), now, 1)
}

// count counts n failures while mu is held.
func (f *Failures) count(a netip.Addr, now int64, n float64) (log bool) {
	s := f.at(a, now)
	if s == nil {
		if n < 0 {
			return false
		}
		if len(f.sources) >= maxSources {
			f.forgetOldest()
		}
		s = &source{left: f.burst, atNs: now}
		f.sources[a] = s
	}
	s.left = max(s.left-n, 0)
	if s.left < f.burst/2 && now-s.loggedNs < logEvery && s.loggedNs != 0 {
		return false
	}
	s.loggedNs = now
	return true
}

func (f *Failures) forgetOldest() {
	var oldest netip.Addr
	at := int64(1<<63 - 1)
	for a, s := range f.sources {
		if s.atNs < at {
			oldest, at = a, s.atNs
		}
	}
	delete(f.sources, oldest)
}
