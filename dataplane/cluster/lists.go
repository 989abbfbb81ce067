package cluster

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"pstorage/dataplane"
)

const maxListBytes = 1 << 20 // of a list file

// bsHead and daemonHead are the comments that a new list begins with.
const (
	bsHead = "# Where the metadata servers of this cluster are: ip[:port], one per line " +
		"(default port 2510).\n"
	daemonHead = "# Daemons of this node: directory, addr=ip:port; one per line.\n"
)

// ParseAddr reads "ip", "ip:port", "ipv6" or "[ipv6]:port"; without a port it is defaultPort.
// Names of hosts are refused: a cluster must not depend on a name service to find itself.
func ParseAddr(text string, defaultPort uint16) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap, nil
	}
	if ip, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return netip.AddrPortFrom(ip, defaultPort), nil
	}
	return netip.AddrPort{}, dataplane.E(fmt.Sprintf("address %q", text), dataplane.Invalid,
		errors.New("write it as ip or ip:port, for example 10.30.100.17:2510"))
}

// BSPath returns the path of bs.list.
func (c *Conf) BSPath() string { return filepath.Join(c.path, "bs.list") }

// LoadBS returns where the metadata servers are, as "ip:port", at least one.
func (c *Conf) LoadBS() ([]string, error) {
	op := "read " + c.BSPath()
	lines, err := readLines(c.BSPath())
	if err != nil {
		return nil, dataplane.E(op, dataplane.IOError, err)
	}
	var addrs []string
	for _, line := range lines {
		ap, err := ParseAddr(line.text, dataplane.DefaultMDSPort)
		if err == nil && ap.Port() == 0 {
			err = errors.New("the port is 0")
		}
		if err != nil {
			return nil, dataplane.E(fmt.Sprintf("%s line %d", op, line.number), dataplane.Malformed, err)
		}
		addrs = append(addrs, ap.String())
	}
	if len(addrs) == 0 {
		return nil, dataplane.E(op, dataplane.NotFound, errors.New(
			"it names no metadata server: put the address of one in it, as ip:port"))
	}
	return addrs, nil
}

// SaveBS replaces bs.list.
func (c *Conf) SaveBS(addrs []string) error {
	text := bsHead
	for _, addr := range addrs {
		ap, err := ParseAddr(addr, dataplane.DefaultMDSPort)
		if err != nil {
			return err
		}
		text += ap.String() + "\n"
	}
	return c.writeAtomic("bs.list", []byte(text), 0o644)
}

// DaemonKind is a kind of daemon that a node keeps a list of.
type DaemonKind string

// The kinds.
const (
	MDS DaemonKind = "mds"
	CS  DaemonKind = "cs"
)

// Daemon is one line of mds.list or cs.list.
type Daemon struct {
	Dir  string // absolute
	Addr string // "ip:port" that it listens at; empty: the daemon's default
}

// ListPath returns the path of the list of daemons of this kind.
func (c *Conf) ListPath(kind DaemonKind) string {
	return filepath.Join(c.path, string(kind)+".list")
}

// Daemons returns the daemons of a kind that this node runs for the cluster, in the order of the
// file; none if there is no file.
func (c *Conf) Daemons(kind DaemonKind) ([]Daemon, error) {
	op := "read " + c.ListPath(kind)
	lines, err := readLines(c.ListPath(kind))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, dataplane.E(op, dataplane.IOError, err)
	}
	var daemons []Daemon
	for _, line := range lines {
		d, err := parseDaemon(line.text)
		if err != nil {
			return nil, dataplane.E(fmt.Sprintf("%s line %d", op, line.number), dataplane.Malformed, err)
		}
		daemons = append(daemons, d)
	}
	return daemons, nil
}

func parseDaemon(line string) (Daemon, error) {
	fields := strings.Fields(line)
	d := Daemon{Dir: fields[0]}
	if err := CheckDir(d.Dir); err != nil {
		return Daemon{}, err
	}
	for _, field := range fields[1:] {
		key, value, ok := strings.Cut(field, "=")
		if !ok || key != "addr" {
			return Daemon{}, fmt.Errorf("%q isn't addr=ip:port", field)
		}
		ap, err := netip.ParseAddrPort(value)
		if err != nil {
			return Daemon{}, fmt.Errorf("%q isn't addr=ip:port", field)
		}
		d.Addr = ap.String()
	}
	return d, nil
}

// CheckDir says what is wrong with dir as a daemon's directory in a list, if anything.
func CheckDir(dir string) error {
	bad := func(why string) error {
		return dataplane.E(fmt.Sprintf("directory %q", dir), dataplane.Invalid, errors.New(why))
	}
	switch {
	case !filepath.IsAbs(dir):
		return bad("it must be an absolute path")
	case filepath.Clean(dir) == "/":
		return bad("it can't be the root directory")
	case strings.Contains(dir, "#"):
		return bad("it may not contain #")
	}
	for _, r := range dir {
		if unicode.IsSpace(r) || unicode.IsControl(r) {
			return bad("it may not contain white space")
		}
	}
	return nil
}

// AddDaemon appends a daemon to the list of its kind. Exists: its directory is there already.
func (c *Conf) AddDaemon(kind DaemonKind, d Daemon) error {
	if err := CheckDir(d.Dir); err != nil {
		return err
	}
	return c.locked(func() error {
		daemons, err := c.Daemons(kind)
		if err != nil {
			return err
		}
		for _, other := range daemons {
			if other.Dir == d.Dir {
				return dataplane.E("add "+d.Dir+" to "+c.ListPath(kind), dataplane.Exists, nil)
			}
		}
		text, err := os.ReadFile(c.ListPath(kind)) // the comments in it stay
		if errors.Is(err, fs.ErrNotExist) {
			text, err = []byte(daemonHead), nil
		}
		if err != nil {
			return dataplane.E("read "+c.ListPath(kind), dataplane.IOError, err)
		}
		if len(text) > 0 && text[len(text)-1] != '\n' {
			text = append(text, '\n')
		}
		return c.writeAtomic(string(kind)+".list", append(text, d.line()...), 0o644)
	})
}

func (d Daemon) line() string {
	if d.Addr == "" {
		return d.Dir + "\n"
	}
	return d.Dir + " addr=" + d.Addr + "\n"
}

// RemoveDaemon takes the daemon with this directory off its list. NotFound: it isn't there.
func (c *Conf) RemoveDaemon(kind DaemonKind, dir string) error {
	return c.locked(func() error {
		text, err := os.ReadFile(c.ListPath(kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return dataplane.E("read "+c.ListPath(kind), dataplane.IOError, err)
		}
		var kept []byte
		found := false
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(uncomment(line))
			if len(fields) > 0 && fields[0] == dir {
				found = true
				continue
			}
			kept = append(kept, line...)
		}
		if !found {
			return dataplane.E("remove "+dir+" from "+c.ListPath(kind), dataplane.NotFound, nil)
		}
		return c.writeAtomic(string(kind)+".list", kept, 0o644)
	})
}

type listLine struct {
	number int // from 1
	text   string
}

// readLines returns the lines of a list without comments and empty ones. The error is bare.
func readLines(path string) ([]listLine, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxListBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxListBytes {
		return nil, fmt.Errorf("larger than %d bytes", maxListBytes)
	}
	var lines []listLine
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		if line = strings.TrimSpace(uncomment(line)); line != "" {
			lines = append(lines, listLine{number, line})
		}
	}
	return lines, nil
}

func uncomment(line string) string {
	text, _, _ := strings.Cut(line, "#")
	return text
}

// BSOrNone is LoadBS for connections that ask for addresses before every attempt: a list that
// can't be read at the moment gives none.
func (c *Conf) BSOrNone() []string {
	addrs, err := c.LoadBS()
	if err != nil {
		return nil
	}
	return addrs
}
