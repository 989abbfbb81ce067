package hwflush

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// testServer starts a server and returns its address and what it printed.
func testServer(t *testing.T) (addr string, printed func() string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var lines []string
	s := NewServer(func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, fmt.Sprintf(format, args...))
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String(), func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(lines, "\n")
	}
}

// stopAfter runs a client until n records are confirmed.
func stopAfter(t *testing.T, o Options, n uint64) Stats {
	t.Helper()
	o.Time = 30 * time.Second
	for o.Time > 0 {
		// Progress comes once a second; a test wants fewer records than that, so it stops by time
		// and goes on only if that wasn't enough.
		short := o
		short.Time = 300 * time.Millisecond
		stats, err := Run(context.Background(), short)
		if err != nil {
			t.Fatal(err)
		}
		if stats.Acknowledged >= n && stats.Reported > 0 {
			return stats
		}
		o.Time -= time.Second
	}
	t.Fatalf("fewer than %d records in any run", n)
	return Stats{}
}

func verify(t *testing.T, o Options) Verdict {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	v, err := Verify(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestHonestDisk: nothing is lost, in both ways of syncing, with the area gone round and not.
func TestHonestDisk(t *testing.T) {
	addr, printed := testServer(t)
	for i, sync := range []Sync{Fdatasync, Dsync} {
		for _, size := range []int64{1 << 20, 64 << 20} {
			o := Options{Server: addr, Path: t.TempDir(), Name: fmt.Sprintf("disk%d-%d", i, size),
				Size: size, Sync: sync}
			stats := stopAfter(t, o, 10)
			v := verify(t, o)
			if v.Lost != 0 || v.Last < stats.Reported || v.Newest < v.Last || v.Compared == 0 {
				t.Errorf("%s, %d bytes: %+v after %+v", sync, size, v, stats)
			}
		}
	}
	if !strings.Contains(printed(), "nothing lost") {
		t.Errorf("the server says %q", printed())
	}
}

// TestLostData: every way in which acknowledged records can be gone is noticed.
func TestLostData(t *testing.T) {
	addr, printed := testServer(t)
	o := Options{Server: addr, Path: t.TempDir(), Name: "disk", Size: 1 << 20}
	file := areaPath(o.Path)
	stopAfter(t, o, 10)
	before, err := os.ReadFile(file) // of an earlier run
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, o, 10)
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	good := verify(t, o)
	if good.Lost != 0 {
		t.Fatalf("before anything is taken away: %+v", good)
	}
	slotOf := func(number uint64) int { return int(number%(1<<20/recordSize)) * recordSize }
	older := bytes.Clone(after) // as if the last record had never got to the disk
	copy(older[slotOf(good.Last):], make([]byte, recordSize))
	torn := bytes.Clone(after)
	copy(torn[slotOf(good.Last)+512:], make([]byte, 512))
	swapped := bytes.Clone(after)
	copy(swapped[slotOf(good.Last):], after[slotOf(good.Last-1):][:recordSize])
	for name, c := range map[string]struct {
		data []byte
		lost uint64 // exactly; 0: all that were compared
	}{
		"rolled back to the earlier run": {before, 0},
		"last record missing":            {older, 1},
		"last record torn":               {torn, 1},
		"record in the wrong place":      {swapped, 1},
		"file cut short":                 {after[:slotOf(0)+recordSize], 0},
		"file gone":                      {nil, 0},
	} {
		err := os.Remove(file)
		if c.data != nil {
			err = os.WriteFile(file, c.data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		v := verify(t, o)
		if v.Lost == 0 || c.lost > 0 && v.Lost != c.lost || v.First == 0 || v.First > v.Last {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if !strings.Contains(printed(), "LOST") {
		t.Errorf("the server says %q", printed())
	}
}

// TestRollBackWithinRun: the disk is put back to an earlier state of the same run.
func TestRollBackWithinRun(t *testing.T) {
	const slots = 256
	area := make([]byte, slots*recordSize)
	write := func(from, to uint64) {
		for n := from; n <= to; n++ {
			r := record{Session{1}, n, slots, n}
			r.put(area[n%slots*recordSize:][:recordSize])
		}
	}
	write(1, 1000)
	old := bytes.Clone(area)
	write(1001, 1010)
	for _, c := range []struct {
		area []byte
		last uint64
		lost uint64
	}{
		{area, 1010, 0},
		{area, 1000, 0},      // ten of the window were written and not reported
		{old, 1001, 1},       // the cut took one
		{old, 1010, 10},      // all
		{area[:0], 5, 5},     // nothing there, few acknowledged
		{area, 1011, 1},      // reported, never written
		{area, 1100, 90},     // reported, never written: far ahead
		{area, 1 << 40, 224}, // another world: all that are compared
	} {
		v, err := compare(bytes.NewReader(c.area), Session{1}, c.last, slots, 32)
		if err != nil || v.Lost != c.lost {
			t.Errorf("last %d: %+v, %v; want %d lost", c.last, v, err, c.lost)
		}
	}
	if v, _ := compare(bytes.NewReader(area), Session{2}, 1010, slots, 32); v.Lost != 224 ||
		v.Newest != 0 {
		t.Errorf("records of another run count: %+v", v)
	}
}

// TestRefusals: no data is overwritten, no two clients mix.
func TestRefusals(t *testing.T) {
	addr, _ := testServer(t)
	dir := t.TempDir()
	mine := filepath.Join(dir, "thesis")
	if err := os.WriteFile(mine, bytes.Repeat([]byte("text "), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for name, o := range map[string]Options{
		"other data":          {Server: addr, Path: mine, Name: "a"},
		"too small":           {Server: addr, Path: dir, Name: "b", Size: 4096},
		"no name":             {Server: addr, Path: dir},
		"long name":           {Server: addr, Path: dir, Name: strings.Repeat("x", 65)},
		"unknown sync":        {Server: addr, Path: dir, Name: "c", Sync: "hope"},
		"no server":           {Server: "127.0.0.1:1", Path: dir, Name: "d"},
		"no such directory":   {Server: addr, Path: filepath.Join(dir, "x", "y"), Name: "e"},
		"a character device":  {Server: addr, Path: "/dev/null", Name: "f"},
		"a name with no runs": {Server: addr, Path: dir, Name: "g", Time: -1},
	} {
		var err error
		if o.Time < 0 {
			_, err = Verify(ctx, o)
		} else {
			_, err = Run(ctx, o)
		}
		if err == nil || ctx.Err() != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	data, _ := os.ReadFile(mine)
	if !bytes.Equal(data, bytes.Repeat([]byte("text "), 1<<20)) {
		t.Error("the thesis is damaged")
	}
}

// TestServerBounds: strange clients are dropped, a name has one client, names are limited.
func TestServerBounds(t *testing.T) {
	addr, _ := testServer(t)
	send := func(m message) (net.Conn, message, error) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if err := m.send(c); err != nil {
			t.Fatal(err)
		}
		answer, err := receive(c)
		return c, answer, err
	}
	begin := message{kind: msgBegin, name: "x", slots: 256, window: 32}
	c, answer, err := send(begin)
	if err != nil || answer.kind != msgOK {
		t.Fatalf("%+v, %v", answer, err)
	}
	if _, answer, _ = send(begin); answer.kind != msgRefused || answer.number != refusedBusy {
		t.Errorf("a second client of a name: %+v", answer)
	}
	for name, m := range map[string]message{
		"report of nobody's": {kind: msgReport, number: 1},
		"too many slots":     {kind: msgBegin, name: "y", slots: 1 << 60, window: 32},
		"huge window":        {kind: msgBegin, name: "y", slots: 256, window: 200},
		"a server's message": {kind: msgOK},
	} {
		if _, answer, err := send(m); err == nil {
			t.Errorf("%s is answered: %+v", name, answer)
		}
	}
	if _, err := c.Write(make([]byte, messageSize)); err != nil {
		t.Fatal(err)
	}
	if m, err := receive(c); err == nil {
		t.Errorf("zeros are answered: %+v", m)
	}
	for i := range maxNames {
		begin.name = fmt.Sprint("n", i)
		c, answer, err = send(begin)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if answer.kind != msgRefused || answer.number != refusedFull {
		t.Errorf("name %d: %+v", maxNames+1, answer)
	}
}

func TestImplausible(t *testing.T) {
	for _, c := range []struct {
		rate     float64
		rotating bool
		warns    bool
	}{{120, true, false}, {6000, true, true}, {6000, false, false}, {90000, false, true}} {
		if got := Implausible(c.rate, c.rotating); (got != "") != c.warns {
			t.Errorf("%v: %q", c, got)
		}
	}
}

func FuzzRecord(f *testing.F) {
	b := make([]byte, recordSize)
	r := record{Session{1, 2}, 7, 512, 99}
	r.put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parseRecord(b)
		if !ok {
			return
		}
		again := make([]byte, recordSize)
		r.put(again)
		if back, ok := parseRecord(again); !ok || back != r {
			t.Errorf("%+v becomes %+v, %v", r, back, ok)
		}
	})
}

func FuzzMessage(f *testing.F) {
	b := make([]byte, messageSize)
	m := message{kind: msgBegin, session: Session{3}, number: 1, slots: 2, window: 3, name: "node1"}
	m.put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			return
		}
		again := make([]byte, messageSize)
		m.put(again)
		if back, err := parseMessage(again); err != nil || back != m {
			t.Errorf("%+v becomes %+v, %v", m, back, err)
		}
	})
}
