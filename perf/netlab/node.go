package netlab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// subnet is the network of every lab: they don't see each other. Up to 250 nodes.
const subnet = "10.213.7."

// maxNodes bounds the nodes of a lab.
const maxNodes = 250

// Node is one machine of the network: a namespace with an address.
type Node struct {
	lab   *Lab
	label string
	ns    string
	addr  string
}

// Add makes a node and connects it to all others. label: small letters and digits.
func (l *Lab) Add(label string) (*Node, error) {
	if !goodName.MatchString(label) || label == switchName || len(l.nodes) == maxNodes {
		return nil, fmt.Errorf("node %q: a name of 1 to 12 small letters and digits is needed, and "+
			"at most %d nodes", label, maxNodes)
	}
	n := &Node{lab: l, label: label, ns: namespace(l.name, label),
		addr: fmt.Sprint(subnet, len(l.nodes)+1)}
	sw := namespace(l.name, switchName)
	for _, args := range [][]string{
		{"ip", "netns", "add", n.ns},
		{"ip", "-n", sw, "link", "add", "name", label, "type", "veth",
			"peer", "name", "eth0", "netns", n.ns},
		{"ip", "-n", sw, "link", "set", "dev", label, "master", "br0", "up"},
		{"ip", "-n", n.ns, "addr", "add", n.addr + "/24", "dev", "eth0"},
		{"ip", "-n", n.ns, "link", "set", "eth0", "up"},
		{"ip", "-n", n.ns, "link", "set", "lo", "up"},
	} {
		if _, err := tool("", args...); err != nil {
			return nil, fmt.Errorf("make node %q: %w", label, err)
		}
	}
	// Packets from an address of the set vanish, as on a cable that is cut: no answer, no RST.
	rules := fmt.Sprintf("table inet %s {\n set cut { type ipv4_addr; }\n counter lost { }\n"+
		" chain input { type filter hook input priority 0; policy accept;\n"+
		"  ip saddr @cut counter name lost drop\n }\n}\n", table)
	if _, err := n.nft(rules); err != nil {
		return nil, fmt.Errorf("make node %q: %w", label, err)
	}
	l.nodes = append(l.nodes, n)
	return n, nil
}

func (n *Node) nft(commands string) (string, error) {
	return tool(commands, "ip", "netns", "exec", n.ns, "nft", "-f", "-")
}

// Addr is the node's IP address.
func (n *Node) Addr() string { return n.addr }

// String is the node's label.
func (n *Node) String() string { return n.label }

// Cut is one direction of a link: packets from From to To.
type Cut struct{ From, To *Node }

func (c Cut) String() string { return c.From.label + "->" + c.To.label }

// Both returns both directions between a and b.
func Both(a, b *Node) []Cut { return []Cut{{a, b}, {b, a}} }

// Cut makes packets vanish, without a sign to either side. Cutting what is cut changes nothing.
func (l *Lab) Cut(cuts ...Cut) error { return l.change("add", cuts) }

// Heal ends a Cut. Healing what isn't cut changes nothing.
func (l *Lab) Heal(cuts ...Cut) error { return l.change("delete", cuts) }

func (l *Lab) change(verb string, cuts []Cut) error {
	per := map[*Node][]string{}
	for _, c := range cuts {
		per[c.To] = append(per[c.To], c.From.addr)
	}
	for _, n := range l.nodes { // in a set order
		addrs := per[n]
		if len(addrs) == 0 {
			continue
		}
		list := strings.Join(addrs, ", ")
		commands := fmt.Sprintf("add element inet %s cut { %s }\n", table, list)
		if verb == "delete" { // added before, so that it is there
			commands += fmt.Sprintf("delete element inet %s cut { %s }\n", table, list)
		}
		if _, err := n.nft(commands); err != nil {
			return fmt.Errorf("%s cut of %s to %s: %w", verb, list, n, err)
		}
	}
	return nil
}

// HealAll ends all cuts.
func (l *Lab) HealAll() error {
	for _, n := range l.nodes {
		if _, err := n.nft(fmt.Sprintf("flush set inet %s cut\n", table)); err != nil {
			return err
		}
	}
	return nil
}

// Lost returns how many packets to n have vanished since it was made.
func (n *Node) Lost() (uint64, error) {
	out, err := n.nft(fmt.Sprintf("list counter inet %s lost\n", table))
	if err != nil {
		return 0, err
	}
	var packets uint64
	if _, after, ok := strings.Cut(out, "packets "); ok {
		_, err = fmt.Sscan(after, &packets)
	} else {
		err = fmt.Errorf("no counter in %q", out)
	}
	return packets, err
}

// Limit sets the speed of the node's link, in bits per second, for each direction; 0: no limit.
func (n *Node) Limit(bits int64) error {
	for _, end := range [][2]string{{n.ns, "eth0"}, {namespace(n.lab.name, switchName), n.label}} {
		if bits == 0 {
			// Without a limit there is nothing to delete, which is an error of tc and none of ours.
			_, _ = tool("", "tc", "-n", end[0], "qdisc", "del", "dev", end[1], "root")
			continue
		}
		_, err := tool("", "tc", "-n", end[0], "qdisc", "replace", "dev", end[1], "root", "tbf",
			"rate", fmt.Sprintf("%dbit", bits), "burst", "256kb", "latency", "20ms")
		if err != nil {
			return fmt.Errorf("limit the link of %s: %w", n, err)
		}
	}
	return nil
}

// Redirect sends connections that processes of the node make to a port of other nodes to a port of
// the node itself, but for those with the mark: of the proxy that listens there and passes them on.
func (n *Node) Redirect(port, to, mark int) error {
	_, err := n.nft(fmt.Sprintf("table ip %sproxy {\n chain output { type nat hook output priority "+
		"-100; policy accept;\n  meta mark != %d tcp dport %d redirect to :%d\n }\n}\n", table, mark,
		port, to))
	return err
}

type spawnRequest struct {
	cmd  *exec.Cmd
	ns   string
	done chan error
}

// Start starts cmd on the node. It is killed when this process ends. The file system is the
// machine's. It may be called by several goroutines.
func (n *Node) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	r := spawnRequest{cmd, n.ns, make(chan error, 1)}
	n.lab.spawn <- r
	return <-r.done
}

// spawner starts processes: a child has the namespace of the thread that forks it, and gets its
// signal when that thread ends; so there is one thread for it, which lives as long as the lab.
func (l *Lab) spawner() {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The first thread stands for the process in /proc: it stays in its namespace.
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.spawner()
		}()
		<-done
		runtime.UnlockOSThread()
		return
	}
	// Not unlocked: the thread, in a strange namespace, ends with this.
	for r := range l.spawn {
		r.done <- startIn(r.ns, r.cmd)
	}
}

func startIn(ns string, cmd *exec.Cmd) error {
	fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", ns, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", ns, err)
	}
	return cmd.Start()
}
