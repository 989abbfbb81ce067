package fuse

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pstorage/dataplane/client"
	"pstorage/uring"
)

// null is a backend that answers each operation at once: what is left is the kernel's share and
// that of this package. A read finds whatever was in the buffer.
type null struct {
	*memory
	ready []*client.Op
	turn  uring.TurnEnder
}

func newNull(m *memory) *null {
	n := &null{memory: m}
	n.turn.TurnEnd = func() {
		for _, op := range n.ready {
			op.Done(op)
		}
		n.ready = n.ready[:0]
	}
	return n
}

func (n *null) Do(op *client.Op) { n.loop.Post(func() { n.Start(op) }) }

func (n *null) Start(op *client.Op) {
	op.N, op.Err = len(op.Buf), nil
	n.ready = append(n.ready, op)
	n.loop.AtTurnEnd(&n.turn)
}

// BenchmarkNull is how many requests fio gets through a mount that does nothing. It needs fio and
// root: go test -run xxx -bench Null -benchtime 1x ./dataplane/fuse
func BenchmarkNull(b *testing.B) {
	if _, err := exec.LookPath("fio"); err != nil {
		b.Skip("no fio: ", err)
	}
	for _, job := range []struct {
		rw        string
		bs, depth int
	}{{"randread", 4096, 32}, {"randwrite", 4096, 32}, {"randread", 4096, 1},
		{"randwrite", 4096, 1}, {"read", 1 << 20, 8}, {"write", 1 << 20, 8}} {
		for _, transport := range transports {
			b.Run(fmt.Sprintf("%s/%d/q%d/%s", job.rw, job.bs, job.depth, transport),
				func(b *testing.B) { benchmarkNull(b, transport, job.rw, job.bs, job.depth) })
		}
	}
}

func benchmarkNull(b *testing.B, transport, rw string, bs, depth int) {
	dir, pid := mountedAs(b, "null "+transport)
	name := filepath.Join(dir, "f")
	if err := os.WriteFile(name, nil, 0600); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(name, 1<<30); err != nil {
		b.Fatal(err)
	}
	before := cpuTicks(b, pid)
	var ops, seconds float64
	for b.Loop() {
		out, err := exec.Command("fio", "--name=n", "--filename="+name, "--rw="+rw,
			"--bs="+strconv.Itoa(bs), "--iodepth="+strconv.Itoa(depth), "--size=1g", "--direct=1",
			"--ioengine=io_uring", "--time_based", "--runtime=2", "--output-format=json").Output()
		if err != nil {
			b.Fatalf("fio: %v", err)
		}
		var r struct {
			Jobs []struct {
				Read, Write struct {
					Ops     float64 `json:"total_ios"`
					Runtime float64 `json:"runtime"`
				}
			}
		}
		if err := json.Unmarshal(out, &r); err != nil {
			b.Fatal(err)
		}
		ops += r.Jobs[0].Read.Ops + r.Jobs[0].Write.Ops
		seconds += (r.Jobs[0].Read.Runtime + r.Jobs[0].Write.Runtime) / 1000
	}
	b.ReportMetric(ops/seconds, "IOPS")
	b.ReportMetric(float64(cpuTicks(b, pid)-before)*1e4/ops, "cpu-µs/op") // of the server
	b.ReportMetric(0, "ns/op")
}

// cpuTicks is the CPU time of a process in hundredths of a second.
func cpuTicks(b *testing.B, pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err1 != nil || err2 != nil {
		b.Fatal(err1, err2)
	}
	return user + system
}
