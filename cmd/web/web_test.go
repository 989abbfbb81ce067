package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane/control"
)

// fleet answers like a leader of a cluster with something going on.
type fleet struct {
	tick int
	fail error
}

func (f *fleet) ask(_ context.Context, command string, args, doc any) error {
	if f.fail != nil {
		return f.fail
	}
	if d, ok := doc.(*control.EventsDoc); ok {
		for i, severity := range []string{"info", "warning", "fault", "info"} {
			d.Events = append(d.Events, control.EventDoc{ID: uint64(i + 1), Severity: severity,
				TimeNs: 1.9e18 + int64(i)*1e9, Source: fmt.Sprint("cs ", i+1), Code: "disk-failed",
				Message: "<b>markup</b> of a message & more, event " + fmt.Sprint(i+1)})
		}
		return nil
	}
	f.tick++
	wave := 1 + math.Sin(float64(f.tick)/9)
	d := doc.(*control.StatDoc)
	*d = control.StatDoc{Cluster: "prod", Health: "degraded", Files: 12,
		Reasons: []string{"40 chunks have fewer live members than wanted",
			"1 chunk servers don't answer"},
		Space: control.SpaceDoc{Total: 80 << 40, Free: 30 << 40, Used: 50 << 40,
			LogicalTotal: 26 << 40, LogicalFree: 10 << 40},
		Chunks: control.ChunksDoc{Total: 240000, Healthy: 239960, Degraded: 40, Recovering: 4,
			Recovered: uint64(f.tick * 3)},
		Recovery: control.RecoveryDoc{Copying: 4, Queued: 36},
		MDS: []control.MDSDoc{{ID: "1", Addr: "10.0.0.1:2510", Leader: true, Voter: true},
			{ID: "2", Addr: "10.0.0.2:2510", Voter: true},
			{ID: "3", Addr: "10.0.0.3:2510", Voter: true, Down: true}}}
	for i := range uint32(8) {
		c := control.CSDoc{ID: i + 1, Status: control.CSActive, Host: fmt.Sprintf("node%d", i/2+1),
			Path: fmt.Sprintf("/disk%d/cs", i%2+1), Addr: fmt.Sprintf("10.0.0.%d:2520", i/2+1),
			Capacity: 10 << 40, Used: uint64(i+2) << 40, Chunks: 90000, ReadRate: 900 * wave,
			WriteRate: 400 + 30*float64(i), ReadSpeed: 6e7 * wave, WriteSpeed: 2e7,
			Stats: &control.CSStats{LogUsed: uint64(i+1) << 28, LogSize: 4 << 30,
				ReadWaitNs: int64(2e5 * wave * float64(i+1)), LogWaitNs: 9e4 * int64(i+1)}}
		if i == 5 {
			c.Status, c.Reason, c.Stats = control.CSOffline, "silent for 12 s", nil
		}
		d.CS = append(d.CS, c)
	}
	return nil
}

// watched returns a poller that has asked n times, every 5 s until now.
func watched(f *fleet, n int) *Poller {
	p := NewPoller(f.ask)
	clock := time.Now().Add(-time.Duration(n) * pollEvery)
	p.now = func() time.Time { return clock }
	for range n {
		clock = clock.Add(pollEvery)
		p.poll(context.Background())
	}
	return p
}

func serve(t *testing.T, token string, loopback bool, list ...Cluster) *httptest.Server {
	s := httptest.NewServer(handler(token, loopback, func() []Cluster { return list }))
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, url string, change func(*http.Request)) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

// TestHistory: points are bounded, rates and what is left are right, and an error doesn't take away
// what is known.
func TestHistory(t *testing.T) {
	f := &fleet{}
	p := watched(f, keepPoints+20)
	s := p.State()
	if len(s.Points) != keepPoints || s.Error != "" || s.Stat.Chunks.Degraded != 40 {
		t.Fatalf("%d points, %q", len(s.Points), s.Error)
	}
	if math.Abs(s.RecoverRate-0.6) > 1e-9 || math.Abs(s.RecoverLeft-40/0.6) > 1e-6 {
		t.Errorf("rate %v, left %v", s.RecoverRate, s.RecoverLeft)
	}
	last := s.Points[len(s.Points)-1]
	if last.LogWorst != 0.72 || last.LogMid != 0.36 && last.LogMid != 0.45 || last.Writes < 3200 {
		t.Errorf("point %+v", last)
	}
	if s.Events[0].ID != 4 {
		t.Errorf("the first event is %d", s.Events[0].ID)
	}
	f.fail = errors.New("no leader")
	p.poll(context.Background())
	if s = p.State(); s.Error != "no leader" || s.Stat == nil || len(s.Points) != keepPoints {
		t.Errorf("after an error: %q, %d points", s.Error, len(s.Points))
	}
	if mid, worst := midWorst(nil); mid != -1 || worst != -1 {
		t.Error("nothing has a median")
	}
}

// TestServed: what is served, to whom, and with which headers.
func TestServed(t *testing.T) {
	cluster := Cluster{"prod", watched(&fleet{}, 3)}
	s := serve(t, "", true, cluster, Cluster{"other", NewPoller((&fleet{}).ask)})
	for path, want := range map[string]string{"/": "<title>pstorage", "/app.js": "use strict",
		"/style.css": "prefers-color-scheme", "/icon.svg": "<svg", "/api/state": `"cluster":"prod"`,
		"/api/state?cluster=other": `"error":"not asked yet"`} {
		resp, text := get(t, s.URL+path, nil)
		csp := resp.Header.Get("Content-Security-Policy")
		if resp.StatusCode != 200 || !strings.Contains(text, want) ||
			!strings.HasPrefix(csp, "default-src 'none'") {
			t.Errorf("%s: %d %q %.200s", path, resp.StatusCode, csp, text)
		}
	}
	_, text := get(t, s.URL+"/api/state", nil)
	var doc stateReply
	if err := json.Unmarshal([]byte(text), &doc); err != nil || len(doc.Clusters) != 2 ||
		len(doc.Points) != 3 {
		t.Errorf("%v: %+v", err, doc.Clusters)
	}
	for _, path := range []string{"/api/state?cluster=none", "/etc/passwd", "/../serve.go"} {
		if resp, _ := get(t, s.URL+path, nil); resp.StatusCode != 404 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
	resp, _ := get(t, s.URL+"/", func(r *http.Request) { r.Host = "evil.example" })
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a foreign name: %d", resp.StatusCode)
	}
	resp, err := http.Post(s.URL+"/api/state", "text/plain", strings.NewReader("x"))
	if err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %v %v", resp, err)
	}
}

func TestToken(t *testing.T) {
	const token = "0123456789abcdef"
	s := serve(t, token, false, Cluster{"prod", watched(&fleet{}, 1)})
	for _, c := range []struct {
		change func(*http.Request)
		want   int
	}{
		{nil, 401},
		{func(r *http.Request) { r.SetBasicAuth("me", token) }, 200},
		{func(r *http.Request) { r.SetBasicAuth(token, "") }, 401},
		{func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }, 200},
		{func(r *http.Request) { r.Header.Set("Authorization", token) }, 401},
	} {
		for _, path := range []string{"/", "/api/state"} {
			if resp, _ := get(t, s.URL+path, c.change); resp.StatusCode != c.want {
				t.Errorf("%s: %d, want %d", path, resp.StatusCode, c.want)
			}
		}
	}
}

func TestFlags(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := os.WriteFile(open, []byte("0123456789abcdef"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct {
		f    Flags
		says string
	}{
		{Flags{}, ""}, {Flags{Addr: "127.0.0.1:0"}, ""}, {Flags{Token: open}, "without --web"},
		{Flags{Addr: "0.0.0.0:0"}, "--web-token"}, {Flags{Addr: "here"}, "IP:PORT"},
		{Flags{Addr: "0.0.0.0:0", Token: open}, "chmod 600"},
		{Flags{Addr: "192.0.2.1:1", Token: filepath.Join(dir, "none")}, "no such file"},
	} {
		err := c.f.Serve(ctx, log, func() []Cluster { return nil })
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want %q", c.f, err, c.says)
		}
	}
}

// TestNothingFromElsewhere: the page's files name nothing outside of them, and the script makes no
// markup out of what it gets.
func TestNothingFromElsewhere(t *testing.T) {
	files, err := filepath.Glob("page/*")
	if err != nil || len(files) != 4 {
		t.Fatalf("%v, %v", files, err)
	}
	bad := regexp.MustCompile(`(?i)(src|href|url)\s*[=(]\s*["']?(https?:)?//|@import|innerHTML|` +
		`insertAdjacentHTML|document\.write|eval\(|style="|onclick`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if found := bad.Find(text); found != nil {
			t.Errorf("%s: %s", file, found)
		}
	}
}
