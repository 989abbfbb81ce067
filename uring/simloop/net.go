package simloop

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"syscall"

	"pstorage/uring"
)

// Times of connecting while the way is cut, in ns: as a kernel that sends its SYN again.
const (
	synEvery    = 200e6
	dialTimeout = 3e9
)

// sockBuf is how many bytes a connection holds outside of its users: on the way and unread.
const sockBuf = 512 << 10

// NetOptions are the network's speed, in nanoseconds. Zero values take the defaults.
type NetOptions struct {
	Latency int64 // one way; default 30 µs
	Jitter  int64 // the most that is added to it at random; default 40 µs; negative: none
	PerKiB  int64 // added per KiB; default 400 ns
}

// Net is a network of nodes by IP address: streams like TCP's. While the way between two addresses
// is cut nothing arrives; what was sent arrives after it is healed, unless the connection was
// closed meanwhile.
type Net struct {
	sim       *Sim
	opt       NetOptions
	rng       *rand.Rand
	nodes     []*Node
	listeners []*listener
	conns     []*Conn
	cuts      [][2]string // from, to
	slow      []slowWay
	mem       *Buffers // of what is on its way
}

// NewNet returns a network without nodes.
func NewNet(s *Sim, o NetOptions) *Net {
	if o.Latency == 0 {
		o.Latency = 30_000
	}
	if o.Jitter == 0 {
		o.Jitter = 40_000
	}
	if o.PerKiB == 0 {
		o.PerKiB = 400
	}
	if s.bufs == nil {
		s.bufs = new(Buffers)
	}
	return &Net{sim: s, opt: o, rng: s.Rand("net"), mem: s.bufs}
}

// Node is one process's access to the network: its uring.Net.
type Node struct {
	net  *Net
	env  *Env
	ip   string
	port int // last ephemeral port
}

var _ uring.Net = (*Node)(nil)

// Node connects e under the given IP address. Several nodes may share an address.
func (n *Net) Node(e *Env, ip string) *Node {
	nd := &Node{net: n, env: e, ip: ip, port: 20000 + 100*len(n.nodes)}
	n.nodes = append(n.nodes, nd)
	e.onKill = append(e.onKill, nd.kill)
	return nd
}

// Cut stops (or heals) the way from one address to another, in that direction only.
func (n *Net) Cut(from, to string, cut bool) {
	w := [2]string{from, to}
	n.cuts = slices.DeleteFunc(n.cuts, func(c [2]string) bool { return c == w })
	if cut {
		n.cuts = append(n.cuts, w)
		return
	}
	for _, c := range n.conns {
		if c.peer.node.ip == from && c.node.ip == to {
			n.sim.push(n.sim.now, c.node.env, c.arrived)
		}
	}
}

// Isolate cuts (or heals) the ways between an address and all other nodes, both directions.
func (n *Net) Isolate(ip string, cut bool) {
	for _, nd := range n.nodes {
		if nd.ip != ip {
			n.Cut(ip, nd.ip, cut)
			n.Cut(nd.ip, ip, cut)
		}
	}
}

// Reset breaks all connections between two addresses: both sides see ECONNRESET.
func (n *Net) Reset(a, b string) {
	for _, c := range slices.Clone(n.conns) {
		if c.node.ip == a && c.peer.node.ip == b || c.node.ip == b && c.peer.node.ip == a {
			c.fail(syscall.ECONNRESET)
		}
	}
}

func (n *Net) isCut(from, to string) bool { return slices.Contains(n.cuts, [2]string{from, to}) }

func (n *Net) delay(bytes int) int64 {
	d := n.opt.Latency + int64(bytes)/1024*n.opt.PerKiB
	if n.opt.Jitter > 0 {
		d += n.rng.Int64N(n.opt.Jitter)
	}
	return d
}

type listener struct {
	node   *Node
	addr   string
	attach func(uring.Conn) uring.ConnHandler
}

// Listen implements uring.Net.
func (nd *Node) Listen(addr string, attach func(uring.Conn) uring.ConnHandler) (string, func(),
	error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", nil, err
	}
	if host == "" || host == "0.0.0.0" {
		host = nd.ip
	}
	if host != nd.ip {
		return "", nil, fmt.Errorf("listen on %s: %w", addr, syscall.EADDRNOTAVAIL)
	}
	if port == "0" {
		port = nd.ephemeral()
	}
	l := &listener{nd, host + ":" + port, attach}
	if nd.net.listener(l.addr) != nil {
		return "", nil, fmt.Errorf("listen on %s: %w", addr, syscall.EADDRINUSE)
	}
	nd.net.listeners = append(nd.net.listeners, l)
	return l.addr, func() { nd.net.unlisten(func(x *listener) bool { return x == l }) }, nil
}

func (nd *Node) ephemeral() string {
	nd.port++
	return strconv.Itoa(nd.port)
}

func (n *Net) listener(addr string) *listener {
	for _, l := range n.listeners {
		if l.addr == addr {
			return l
		}
	}
	return nil
}

func (n *Net) unlisten(which func(*listener) bool) {
	n.listeners = slices.DeleteFunc(n.listeners, which)
}

// Dial implements uring.Net.
func (nd *Node) Dial(addr string, attach func(uring.Conn) uring.ConnHandler,
	done func(uring.Conn, error)) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		nd.env.Post(func() { done(nil, err) })
		return
	}
	nd.syn(host, addr, nd.net.sim.now+dialTimeout, attach, done)
}

// syn tries to reach addr once, after the network's latency, and again until the deadline.
func (nd *Node) syn(host, addr string, deadline int64,
	attach func(uring.Conn) uring.ConnHandler, done func(uring.Conn, error)) {
	n := nd.net
	n.sim.push(n.sim.now+n.delay(0), nil, doFunc(func() {
		answer := func(f func()) { n.sim.push(n.sim.now+n.delay(0), nd.env, doFunc(f)) }
		switch l := n.listener(addr); {
		case nd.env.dead:
		case n.sim.now >= deadline:
			answer(func() { done(nil, fmt.Errorf("dial %s: %w", addr, syscall.ETIMEDOUT)) })
		case n.isCut(nd.ip, host) || n.isCut(host, nd.ip):
			n.sim.After(synEvery, func() { nd.syn(host, addr, deadline, attach, done) })
		case l == nil:
			answer(func() { done(nil, fmt.Errorf("dial %s: %w", addr, syscall.ECONNREFUSED)) })
		default:
			n.connect(nd, l, attach, done)
		}
	}))
}

// connect makes the two ends. The accepting side is attached first, then the dialing one, unless
// the accepting side's process ended meanwhile, which the dialer sees as a reset.
func (n *Net) connect(nd *Node, l *listener, attach func(uring.Conn) uring.ConnHandler,
	done func(uring.Conn, error)) {
	from := nd.ip + ":" + nd.ephemeral()
	a, b := newConn(n, nd, l.addr), newConn(n, l.node, from)
	a.peer, b.peer = b, a
	n.conns = append(n.conns, a, b)
	n.sim.push(n.sim.now, b.node.env, doFunc(func() {
		if !b.closed {
			b.handler = l.attach(b)
			b.feed()
		}
	}))
	n.sim.push(n.sim.now+n.delay(0), nd.env, doFunc(func() {
		if a.closed {
			done(nil, fmt.Errorf("dial %s: %w", l.addr, syscall.ECONNRESET))
			return
		}
		a.handler = attach(a)
		done(a, nil)
		a.feed()
	}))
}

// kill is the end of the node's process: the kernel resets its connections.
func (nd *Node) kill() {
	nd.net.unlisten(func(l *listener) bool { return l.node == nd })
	for _, c := range slices.Clone(nd.net.conns) {
		if c.node == nd {
			c.closed = true
			c.peer.send(segment{reset: true})
			nd.net.drop(c)
		}
	}
}

func (n *Net) drop(c *Conn) {
	n.conns = slices.DeleteFunc(n.conns, func(x *Conn) bool { return x == c })
}
