package web

import (
	"bytes"
	"context"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// browser is a headless Chromium.
type browser struct {
	t       *testing.T
	program string
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	if testing.Short() {
		t.Skip("a browser takes its time: make test-long takes it")
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return &browser{t, path}
		}
	}
	t.Skip("no Chromium: the page isn't looked at (apt-get install chromium)")
	return nil
}

// run opens url with the flags and returns what the browser prints.
func (b *browser) run(url string, flags ...string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	args := append([]string{"--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
		"--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--user-data-dir=" + b.t.TempDir(),
		"--virtual-time-budget=4000"}, flags...)
	cmd := exec.CommandContext(ctx, b.program, append(args, url)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		b.t.Fatalf("%s: %v\n%s", b.program, err, errs.String())
	}
	return out.String()
}

// TestInBrowser opens the page in Chromium: what it shows is there as text, what comes from the
// cluster isn't taken for markup, and it is drawn, on dark and on light, wide and narrow.
// PSTORAGE_SHOTS names a directory where the pictures are kept.
func TestInBrowser(t *testing.T) {
	b := newBrowser(t)
	s := serve(t, "", true, Cluster{"prod", watched(&fleet{}, 150)})
	dom := b.run(s.URL, "--dump-dom")
	for _, text := range []string{"! degraded", "10.0 TiB free", "of 26.0 TiB", "40 to restore",
		"about 67 s left", "240,000", "239,960 healthy", "node4", "silent for 12 s",
		"Write latency of the journals",
		"&lt;b&gt;markup&lt;/b&gt;", `<span class="s-warn">warning</span>`, "slowest 0.72 ms",
		"10.0.0.3:2510", `<span class="s-bad">down</span>`} {
		if !strings.Contains(dom, text) {
			t.Errorf("the page doesn't show %q", text)
		}
	}
	if t.Failed() {
		t.Logf("%s", dom)
	}
	dir := os.Getenv("PSTORAGE_SHOTS")
	if dir == "" {
		dir = t.TempDir()
	}
	for name, flags := range map[string][]string{
		"light":  {"--window-size=1280,1500", "--blink-settings=preferredColorScheme=1"},
		"dark":   {"--window-size=1280,1500", "--blink-settings=preferredColorScheme=0"},
		"narrow": {"--window-size=420,2200", "--blink-settings=preferredColorScheme=1"},
	} {
		file := filepath.Join(dir, "page-"+name+".png")
		b.run(s.URL, append(flags, "--screenshot="+file)...)
		light, colours := look(t, file)
		if colours < 40 || (name == "dark") != (light < 0.4) {
			t.Errorf("%s: brightness %.2f, %d colours", name, light, colours)
		}
	}
}

// look returns how bright a picture is, 0 to 1, and how many colours it has.
func look(t *testing.T, file string) (light float64, colours int) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[3]uint32]bool{}
	sum, n := 0.0, 0
	for y := img.Bounds().Min.Y; y < img.Bounds().Max.Y; y++ {
		for x := img.Bounds().Min.X; x < img.Bounds().Max.X; x++ {
			r, g, b, _ := img.At(x, y).RGBA()
			seen[[3]uint32{r, g, b}] = true
			sum += float64(r+g+b) / (3 * 65535)
			n++
		}
	}
	return sum / float64(n), len(seen)
}
