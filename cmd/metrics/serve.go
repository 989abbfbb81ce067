package metrics

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
)

// The ports that the manuals name for each daemon.
const (
	PortMDS    = "9520"
	PortCS     = "9521"
	PortMount  = "9522"
	PortExport = "9523"
)

const (
	scrapeTime = 10 * time.Second // for an answer
	maxScrapes = 4                // at a time; others are told to come later
	minToken   = 16               // bytes
	maxToken   = 4096
)

// Flags say where a daemon serves its metrics. Without --metrics it doesn't.
type Flags struct {
	Addr  string
	Token string // file
}

// Add adds the flags to cmd. port is the one that its manual names.
func (f *Flags) Add(cmd *cobra.Command, port string) {
	flags := cmd.Flags()
	flags.StringVar(&f.Addr, "metrics", "", "serve counters in the OpenMetrics format at "+
		"http://`IP:PORT`/metrics, such as 127.0.0.1:"+port)
	flags.StringVar(&f.Token, "metrics-token", "",
		"ask for the bearer token in `FILE`; needed unless the address is loopback")
}

// Collector adds a daemon's samples to t. It is called by one goroutine at a time. An error says
// why the daemon couldn't tell in time.
type Collector func(ctx context.Context, t *Text) error

// Serve serves collect's metrics until ctx ends, in the background, if a flag asks for that. The
// error is one of the flags, or of the address.
func (f *Flags) Serve(ctx context.Context, log *slog.Logger, collect Collector) error {
	if f.Addr == "" {
		if f.Token != "" {
			return cli.Usage("--metrics-token without --metrics")
		}
		return nil
	}
	host, _, err := net.SplitHostPort(f.Addr)
	ip := net.ParseIP(host)
	switch {
	case err != nil || ip == nil:
		return cli.Usage("--metrics %s: write it as IP:PORT, such as 127.0.0.1:%s", f.Addr, PortCS)
	case !ip.IsLoopback() && f.Token == "":
		return cli.Usage("--metrics %s: not loopback, so everybody could read it; protect it with "+
			"--metrics-token FILE", f.Addr)
	}
	token, err := ReadToken(f.Token)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", f.Addr)
	if err != nil {
		return cli.Fail("serve metrics on "+f.Addr, err, "choose another address with --metrics")
	}
	server := &http.Server{Handler: handler(token, collect), ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout: 5 * time.Second, WriteTimeout: 2 * scrapeTime, IdleTimeout: time.Minute,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	context.AfterFunc(ctx, func() { server.Close() })
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the metrics endpoint has ended", "addr", f.Addr, "err", err)
		}
	}()
	log.Info("serving metrics", "addr", listener.Addr().String(), "path", "/metrics")
	return nil
}

// ReadToken reads the token in a file that only its owner may read. No file: no token.
func ReadToken(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	what := "read the token in " + path
	file, err := os.Open(path)
	if err != nil {
		return "", cli.Fail(what, cli.Plain(err), "")
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", cli.Fail(what, cli.Plain(err), "")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", cli.Failf(what, "others than its owner can read it", "chmod 600 "+path)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxToken+1))
	if err != nil {
		return "", cli.Fail(what, cli.Plain(err), "")
	}
	token := strings.TrimSpace(string(text))
	if len(token) < minToken || len(text) > maxToken {
		return "", cli.Failf(what, fmt.Sprintf("a token has %d to %d characters", minToken, maxToken),
			"make one with: openssl rand -hex 32")
	}
	return token, nil
}

// handler answers GET /metrics, one scrape after the other.
func handler(token string, collect Collector) http.Handler {
	want := sha256.Sum256([]byte("Bearer " + token))
	waiting := make(chan struct{}, maxScrapes)
	turn := make(chan struct{}, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		if token != "" && subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "a token is needed", http.StatusUnauthorized)
			return
		}
		select {
		case waiting <- struct{}{}:
			defer func() { <-waiting }()
		default:
			http.Error(w, "too many requests at a time", http.StatusServiceUnavailable)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), scrapeTime)
		defer cancel()
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-ctx.Done():
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		var t Text
		if err := collect(ctx, &t); err != nil {
			http.Error(w, cli.OneLine(err), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", ContentType)
		io.Copy(w, bytes.NewReader(t.Bytes()))
	})
	return mux
}
