package nettest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/perf"
	"pstorage/perf/netlab"
)

// streamEnv makes the test's binary one end of a plain TCP stream: "send ADDR" sends until it is
// killed, "receive ADDR" prints how many bytes per second came in a few seconds.
const streamEnv = "PSTORAGE_NETTEST_STREAM"

const (
	linkSpeed  = int64(1e9) // bits per second
	streamTime = 3 * time.Second
	streamWarm = 500 * time.Millisecond
	wantOfLink = 0.95
)

func stream(role string) error {
	var verb, addr string
	if _, err := fmt.Sscan(role, &verb, &addr); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	if verb == "send" {
		c, err := net.Dial("tcp", addr)
		for tries := 0; err != nil && tries < 100; tries++ { // nobody listens yet
			time.Sleep(20 * time.Millisecond)
			c, err = net.Dial("tcp", addr)
		}
		for err == nil {
			_, err = c.Write(buf)
		}
		return nil // the other end has ended
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	begin, from, n := time.Now(), time.Time{}, 0
	for time.Since(begin) < streamWarm+streamTime {
		k, err := c.Read(buf)
		if err != nil {
			return err
		}
		if from.IsZero() {
			if time.Since(begin) > streamWarm {
				from = time.Now()
			}
			continue
		}
		n += k
	}
	_, err = fmt.Printf("%.0f\n", float64(n)/time.Since(from).Seconds())
	return err
}

// tcpRate is the payload, in bytes per second, of a plain TCP stream between two nodes.
func (c *testCluster) tcpRate(from, to *netlab.Node) float64 {
	c.t.Helper()
	end := func(verb string) *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s:7008", streamEnv, verb, to.Addr()))
		return cmd
	}
	sender := end("send")
	c.must(from.Start(sender))
	out, err := output(to, end("receive"))
	_ = sender.Process.Kill() // most likely it has ended
	_ = sender.Wait()
	c.must(err)
	rate, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	c.must(err)
	return rate
}

// fillHoles writes zeros where the first n bytes of a file have nothing yet. What is written later
// then finds its space: neither the file system nor the machine, which gives a directory in memory
// its pages at the first touch, has a part in the measurement.
func fillHoles(path string, n int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < n; {
		hole, err := unix.Seek(int(f.Fd()), at, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(f.Fd()), hole, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing more
			end = n
		} else if err != nil {
			return err
		}
		for at, end = hole, min(end, n); at < end; {
			k, err := f.WriteAt(zeros[:min(int64(len(zeros)), end-at)], at)
			if err != nil {
				return err
			}
			at += int64(k)
		}
		at = max(at, end)
	}
	return f.Sync()
}

// writeRate has the load generator write blocks of 1 MiB one after the other. As with plain TCP,
// what the first half second gives isn't counted.
func (c *testCluster) writeRate(n *netlab.Node, file string, depth, seconds int) perf.Result {
	c.t.Helper()
	cmd := c.command(n, "pstorage-perf", "native", "-c", clusterName, "--file", file, "--rw",
		"write", "--bs", "1M", "--qd", fmt.Sprint(depth), "--size", "4G", "--time",
		fmt.Sprint(seconds), "--warm", fmt.Sprint(streamWarm.Seconds()), "--json")
	out, err := output(n, cmd)
	c.must(err)
	var r perf.Result
	c.must(json.Unmarshal(out, &r))
	return r
}

// wear is what a measurement cost the machine: figures to tell a slow product from a machine
// without time for it.
type wear struct {
	idle, total uint64 // CPU time of the machine, in ticks
	resent      uint64 // TCP segments that the client and the chunk servers sent again
}

func (c *testCluster) wear() (w wear) {
	c.t.Helper()
	text, err := os.ReadFile("/proc/stat")
	c.must(err)
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:9] { // user to steal
		n, err := strconv.ParseUint(field, 10, 64)
		c.must(err)
		w.total += n
		if i == 3 || i == 4 { // idle, iowait
			w.idle += n
		}
	}
	nodes := slices.Clone(c.clients)
	for _, s := range c.cs {
		nodes = append(nodes, s.node)
	}
	for _, n := range nodes {
		out, err := output(n, exec.Command("cat", "/proc/net/snmp"))
		c.must(err)
		w.resent += snmp(c.t, string(out), "Tcp:", "RetransSegs")
	}
	return w
}

// snmp is a counter of /proc/net/snmp, which has a line of names before each line of values.
func snmp(t *testing.T, text, proto, name string) uint64 {
	t.Helper()
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != proto {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		n, err := strconv.ParseUint(fields[slices.Index(names, name)], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatalf("no %s %s in %q", proto, name, text)
	return 0
}

func (w wear) since(b wear) string {
	return fmt.Sprintf("CPUs busy %.0f %%, %d segments sent again",
		100-100*float64(w.idle-b.idle)/float64(max(w.total-b.total, 1)), w.resent-b.resent)
}

// TestLinkSpeed: sequential writes of three copies over links of 1 Gbit/s fill the link of the
// client, which carries the data once; as do the links of the chain.
func TestLinkSpeed(t *testing.T) {
	needs(t)
	if testing.Short() {
		t.Skip("a measurement: run make test-net")
	}
	c := newCluster(t, "rate", 1, 3, 1)
	client := c.clients[0]
	for _, s := range append(c.cs, c.mds...) {
		c.must(s.node.Limit(linkSpeed))
	}
	c.must(client.Limit(linkSpeed))
	for _, depth := range []int{8, 4, 1} {
		rounds := 1
		if depth == 8 {
			rounds = 3
		}
		t.Run(fmt.Sprint("depth", depth), func(t *testing.T) { c.linkShare(t, depth, rounds) })
	}
}

// linkShare measures writes with so many in flight beside plain TCP, in rounds.
func (c *testCluster) linkShare(t *testing.T, depth, rounds int) {
	client := c.clients[0]
	passes := []string{"new chunks", "existing chunks"}
	ratios := make([][]float64, len(passes))
	for round := range rounds {
		tcp := c.tcpRate(client, c.cs[0].node)
		for i, pass := range passes {
			before := c.wear()
			r := c.writeRate(client, fmt.Sprintf("/rate%d-%d", depth, round), depth, 3)
			after := c.wear()
			ratios[i] = append(ratios[i], r.MBps*1e6/tcp)
			t.Logf("1 MiB writes, %d in flight, 3 copies, %s: %.1f MB/s, plain TCP on the same link "+
				"%.1f MB/s: %.3f (p50 %.1f ms, p99 %.1f ms, max %.1f ms; %s)", depth, pass, r.MBps, tcp/1e6,
				r.MBps*1e6/tcp, r.Latency.P50/1e3, r.Latency.P99/1e3, r.Latency.Max/1e3,
				after.since(before))
		}
	}
	for i, pass := range passes {
		slices.Sort(ratios[i])
		median := ratios[i][rounds/2]
		t.Logf("%d in flight, %s: %.3f of plain TCP, median of %d", depth, pass, median, rounds)
		want := wantOfLink
		if !goalsHeld() {
			want /= farOff
		}
		if depth == 8 && median < want {
			t.Errorf("%s: %.3f of plain TCP, less than %.2f", pass, median, want)
		}
	}
}
