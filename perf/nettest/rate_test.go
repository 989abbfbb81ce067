package nettest

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

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

// writeRate has the load generator write blocks of 1 MiB one after the other.
func (c *testCluster) writeRate(n *netlab.Node, file string, depth, seconds int) perf.Result {
	c.t.Helper()
	cmd := c.command(n, "pstorage-perf", "native", "-c", clusterName, "--file", file, "--rw",
		"write", "--bs", "1M", "--qd", fmt.Sprint(depth), "--size", "4G", "--time",
		fmt.Sprint(seconds), "--json")
	out, err := output(n, cmd)
	c.must(err)
	var r perf.Result
	c.must(json.Unmarshal(out, &r))
	return r
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
	for _, depth := range []int{1, 4, 8} {
		tcp := c.tcpRate(client, c.cs[0].node)
		for _, pass := range []string{"first", "second"} { // chunks are made, then there
			r := c.writeRate(client, fmt.Sprint("/rate", depth), depth, 4)
			t.Logf("1 MiB writes, %d in flight, 3 copies, %s pass: %.1f MB/s, plain TCP on the same link "+
				"%.1f MB/s: %.3f (p50 %.1f ms, p99 %.1f ms, max %.1f ms)", depth, pass, r.MBps, tcp/1e6,
				r.MBps*1e6/tcp, r.Latency.P50/1e3, r.Latency.P99/1e3, r.Latency.Max/1e3)
			if depth == 8 && r.MBps*1e6 < wantOfLink*tcp && os.Getenv("PSTORAGE_NET_STRICT") != "" {
				t.Errorf("less than %.2f of the link", wantOfLink)
			}
		}
	}
}
