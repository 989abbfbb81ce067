package metrics

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pstorage/cmd/cli"
)

func sampleText() *Text {
	var t Text
	c := t.Family(Counter, "pstorage_reads", "", "Reads, \"all\"\nof them")
	c.Add(3, "cs", "1", "path", "/a \"b\"\\c\n")
	t.Family(Gauge, "pstorage_space_bytes", "bytes", "Space").Add(1e18)
	t.Family(Histogram, "pstorage_wait_seconds", "seconds", "Waits").
		AddHistogram([]float64{0.001, 1}, []uint64{2, 0, 1}, 7.5, "cs", "1")
	c = t.Family(Counter, "pstorage_reads", "", "")
	c.Add(4, "cs", "2")
	t.Family(Info, "pstorage_build", "", "Version").Add(1, "version", "x")
	t.Family(Gauge, "pstorage_nothing", "", "Has no samples and isn't written")
	return &t
}

func TestTextParses(t *testing.T) {
	text := sampleText().Bytes()
	got, err := Parse(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if v, ok := got.Value("pstorage_reads", "path", "/a \"b\"\\c\n"); !ok || v != 3 {
		t.Errorf("reads of 1: %v, %v", v, ok)
	}
	if v, ok := got.Value("pstorage_reads", "cs", "2"); !ok || v != 4 {
		t.Errorf("reads of 2: %v, %v", v, ok)
	}
	if v, ok := got.Value("pstorage_space_bytes"); !ok || v != 1e18 {
		t.Errorf("space: %v, %v", v, ok)
	}
	if v, ok := got.Value("pstorage_wait_seconds", "le", "1.0"); !ok || v != 2 {
		t.Errorf("bucket: %v, %v\n%s", v, ok, text)
	}
	if len(got["pstorage_nothing"]) != 0 {
		t.Error("a family without samples was written")
	}
}

// TestParseRefuses is what keeps the parser strict.
func TestParseRefuses(t *testing.T) {
	const head = "# TYPE a counter\n# HELP a h\n"
	for name, text := range map[string]string{
		"no end":            head + "a_total 1\n",
		"no suffix":         head + "a 1\n# EOF\n",
		"no family":         "a_total 1\n# EOF\n",
		"twice":             head + "a_total 1\na_total 2\n# EOF\n",
		"negative":          head + "a_total -1\n# EOF\n",
		"no number":         head + "a_total x\n# EOF\n",
		"no samples":        head + "# EOF\n",
		"in pieces":         head + "a_total 1\n" + head + "a_total{x=\"1\"} 1\n# EOF\n",
		"bad label":         head + "a_total{x=1} 1\n# EOF\n",
		"label twice":       head + "a_total{x=\"1\",x=\"2\"} 1\n# EOF\n",
		"bad escape":        head + "a_total{x=\"\\t\"} 1\n# EOF\n",
		"unit not in name":  "# TYPE a gauge\n# UNIT a bytes\na 1\n# EOF\n",
		"empty line":        head + "\na_total 1\n# EOF\n",
		"unknown kind":      "# TYPE a number\na 1\n# EOF\n",
		"not cumulative":    histogramText("2", "1", "1"),
		"count isn't total": histogramText("1", "2", "3"),
	} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s is accepted:\n%s", name, text)
		}
	}
	if _, err := Parse([]byte(histogramText("1", "2", "2"))); err != nil {
		t.Errorf("a good histogram: %v", err)
	}
}

func histogramText(first, second, count string) string {
	return "# TYPE a histogram\na_bucket{le=\"1.0\"} " + first + "\na_bucket{le=\"+Inf\"} " + second +
		"\na_count " + count + "\na_sum 1\n# EOF\n"
}

func FuzzParse(f *testing.F) {
	f.Add(sampleText().Bytes())
	f.Add([]byte(histogramText("1", "2", "2")))
	f.Fuzz(func(t *testing.T, text []byte) { Parse(text) })
}

func TestEndpoint(t *testing.T) {
	var fail error
	h := handler("sesame", func(_ context.Context, text *Text) error {
		*text = *sampleText()
		return fail
	})
	get := func(method, path, auth string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, nil)
		r.Header.Set("Authorization", auth)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	w := get("GET", "/metrics", "Bearer sesame")
	if _, err := Parse(w.Body.Bytes()); w.Code != http.StatusOK || err != nil ||
		w.Header().Get("Content-Type") != ContentType {
		t.Errorf("%d %v %v", w.Code, err, w.Header())
	}
	for _, auth := range []string{"", "sesame", "Bearer sesam", "Bearer sesame "} {
		if w := get("GET", "/metrics", auth); w.Code != http.StatusUnauthorized ||
			strings.Contains(w.Body.String(), "pstorage_") {
			t.Errorf("with %q: %d %s", auth, w.Code, w.Body)
		}
	}
	if w := get("POST", "/metrics", "Bearer sesame"); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
	if w := get("GET", "/debug/pprof/", "Bearer sesame"); w.Code != http.StatusNotFound {
		t.Errorf("another path: %d", w.Code)
	}
	fail = errors.New("the loop doesn't answer")
	if w := get("GET", "/metrics", "Bearer sesame"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("without an answer: %d", w.Code)
	}
}

// TestAddresses: what isn't loopback needs a token, and a token isn't for everybody's eyes.
func TestAddresses(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, c := range []struct {
		addr, token string
		status      int
	}{
		{"", "", cli.ExitOK},
		{"127.0.0.1:0", "", cli.ExitOK},
		{"127.0.0.1:0", file("good", strings.Repeat("x", 32)+"\n", 0o600), cli.ExitOK},
		{"0.0.0.0:0", "", cli.ExitUsage},
		{"localhost:0", "", cli.ExitUsage},
		{"127.0.0.1", "", cli.ExitUsage},
		{"127.0.0.1:0", file("short", "x\n", 0o600), cli.ExitFailed},
		{"127.0.0.1:0", file("open", strings.Repeat("x", 32), 0o644), cli.ExitFailed},
		{"127.0.0.1:0", filepath.Join(dir, "none"), cli.ExitFailed},
		{"", filepath.Join(dir, "good"), cli.ExitUsage},
	} {
		f := Flags{c.addr, c.token}
		if err := f.Serve(ctx, log, nil); cli.Status(err) != c.status {
			t.Errorf("%+v: %v, want status %d", f, err, c.status)
		}
	}
}
