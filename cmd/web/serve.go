package web

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/cmd/metrics"
)

//go:embed page
var page embed.FS

// Port is the one that the manuals name.
const Port = "9530"

// Flags say where a metadata server serves the page. Without --web it doesn't.
type Flags struct {
	Addr  string
	Token string // file
}

// Add adds the flags to cmd.
func (f *Flags) Add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.Addr, "web", "", "serve a page that shows the cluster's state at "+
		"http://`IP:PORT`/, such as 127.0.0.1:"+Port)
	flags.StringVar(&f.Token, "web-token", "",
		"ask for the token in `FILE`, as the password of any user; needed unless the address is loopback")
}

// Cluster is one cluster that the page shows.
type Cluster struct {
	Name string
	*Poller
}

// Serve serves the page until ctx ends, in the background, if a flag asks for that. clusters
// returns those to show, at least one by the time of a request. The error is one of the flags, or
// of the address.
func (f *Flags) Serve(ctx context.Context, log *slog.Logger, clusters func() []Cluster) error {
	if f.Addr == "" {
		if f.Token != "" {
			return cli.Usage("--web-token without --web")
		}
		return nil
	}
	host, _, err := net.SplitHostPort(f.Addr)
	ip := net.ParseIP(host)
	switch {
	case err != nil || ip == nil:
		return cli.Usage("--web %s: write it as IP:PORT, such as 127.0.0.1:%s", f.Addr, Port)
	case !ip.IsLoopback() && f.Token == "":
		return cli.Usage("--web %s: not loopback, so everybody could read it; protect it with "+
			"--web-token FILE", f.Addr)
	}
	token, err := metrics.ReadToken(f.Token)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", f.Addr)
	if err != nil {
		return cli.Fail("serve the web page on "+f.Addr, err, "choose another address with --web")
	}
	server := &http.Server{Handler: handler(token, ip.IsLoopback(), clusters),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 20 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	context.AfterFunc(ctx, func() { server.Close() })
	go func() {
		if err := server.Serve(limit(listener)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the web page isn't served any more", "addr", f.Addr, "err", err)
		}
	}()
	log.Info("serving the web page", "url", "http://"+listener.Addr().String()+"/")
	return nil
}

// handler answers GET of the page's files and of /api/state?cluster=NAME.
func handler(token string, loopback bool, clusters func() []Cluster) http.Handler {
	files, err := fs.Sub(page, "page")
	if err != nil {
		panic(err) // it is embedded
	}
	static := http.FileServerFS(files)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/state", func(w http.ResponseWriter, r *http.Request) {
		answerState(w, r.URL.Query().Get("cluster"), clusters())
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { static.ServeHTTP(w, r) })
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; "+
			"connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "+
			"frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		// A name of somebody else's that resolves to this address is a page of theirs asking.
		if loopback && !loopbackHost(r.Host) {
			http.Error(w, "ask for this address by its number, or as localhost", http.StatusForbidden)
			return
		}
		if token != "" && !admitted(r, want) {
			h.Set("WWW-Authenticate", `Basic realm="pstorage (any user, the token as password)"`)
			http.Error(w, "a token is needed", http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// loopbackHost says whether the Host of a request names loopback.
func loopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// admitted says whether a request has the token.
func admitted(r *http.Request, want [32]byte) bool {
	_, given, ok := r.BasicAuth()
	if !ok {
		given, ok = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	got := sha256.Sum256([]byte(given))
	return ok && subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

// stateReply is State, and the names of all clusters that there are.
type stateReply struct {
	Cluster  string   `json:"cluster"`
	Clusters []string `json:"clusters"`
	State
}

func answerState(w http.ResponseWriter, name string, list []Cluster) {
	reply := stateReply{Clusters: []string{}}
	var chosen *Poller
	for _, c := range list {
		reply.Clusters = append(reply.Clusters, c.Name)
		if chosen == nil && (name == "" || c.Name == name) {
			reply.Cluster, chosen = c.Name, c.Poller
		}
	}
	if chosen == nil {
		http.Error(w, "no such cluster here", http.StatusNotFound)
		return
	}
	reply.State = chosen.State()
	text, err := json.Marshal(reply)
	if err != nil {
		http.Error(w, cli.OneLine(err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text) // whoever asked may be gone
}

const maxConns = 64 // others wait

// limited is a listener with a bounded number of connections.
type limited struct {
	net.Listener
	slots chan struct{}
}

func limit(l net.Listener) net.Listener { return &limited{l, make(chan struct{}, maxConns)} }

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

type limitedConn struct {
	net.Conn
	free func() // once
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	c.free()
	return c.Conn.Close()
}
