package discover

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
)

func testConf(t *testing.T, bs ...string) *cluster.Conf {
	t.Helper()
	conf, err := cluster.At(t.TempDir(), "c1")
	if err == nil && len(bs) > 0 {
		err = conf.SaveBS(bs)
	}
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// dnsServer is a name server on the loopback with the records of answers, by name and type. It
// returns a resolver that asks it and no other.
func dnsServer(t *testing.T, answers map[string][]dnsmessage.ResourceBody) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		packet := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			if answer := dnsAnswer(packet[:n], answers); answer != nil {
				conn.WriteTo(answer, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn,
		error) {
		return (&net.Dialer{}).DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}
}

func dnsAnswer(packet []byte, answers map[string][]dnsmessage.ResourceBody) []byte {
	var m dnsmessage.Message
	if m.Unpack(packet) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.Additionals, m.RCode = true, nil, dnsmessage.RCodeNameError
	for name, bodies := range answers {
		if !strings.HasPrefix(q.Name.String(), name+".") {
			continue
		}
		m.RCode = dnsmessage.RCodeSuccess
		for _, body := range bodies {
			r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type,
				Class: dnsmessage.ClassINET, TTL: 1}, Body: body}
			switch body.(type) {
			case *dnsmessage.SRVResource:
				if q.Type == dnsmessage.TypeSRV {
					m.Answers = append(m.Answers, r)
				}
			case *dnsmessage.AResource:
				if q.Type == dnsmessage.TypeA {
					m.Answers = append(m.Answers, r)
				}
			}
		}
	}
	b, _ := m.Pack()
	return b
}

func srv(priority, port uint16, target string) *dnsmessage.SRVResource {
	return &dnsmessage.SRVResource{Priority: priority, Port: port,
		Target: dnsmessage.MustNewName(target)}
}

func texts(addrs []netip.AddrPort) (all []string) {
	for _, a := range addrs {
		all = append(all, a.String())
	}
	return all
}

// find returns what the ways give, by way.
func find(t *testing.T, f *Finder) map[string]Found {
	t.Helper()
	found, err := f.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ways := map[string]Found{}
	for _, x := range found {
		ways[x.Way] = x
	}
	return ways
}

func TestDNS(t *testing.T) {
	conf := testConf(t, "10.0.0.9")
	f := &Finder{Conf: conf, Networks: []net.Interface{}, Resolver: dnsServer(t,
		map[string][]dnsmessage.ResourceBody{
			"_pstorage._tcp.c1": {srv(20, 2511, "m2.example."), srv(10, 2510, "m1.example.")},
			"m1.example":        {&dnsmessage.AResource{A: [4]byte{10, 0, 0, 1}}},
			"m2.example": {&dnsmessage.AResource{A: [4]byte{10, 0, 0, 2}},
				&dnsmessage.AResource{A: [4]byte{0, 0, 0, 0}},
				&dnsmessage.AResource{A: [4]byte{224, 0, 0, 1}}},
		})}
	ways := find(t, f)
	if got := texts(ways[DNS].Addrs); !slices.Equal(got, []string{"10.0.0.1:2510", "10.0.0.2:2511"}) {
		t.Errorf("by DNS: %v, %v", got, ways[DNS].Err)
	}
	if got := texts(ways[List].Addrs); !slices.Equal(got, []string{"10.0.0.9:2510"}) {
		t.Errorf("by bs.list: %v, %v", got, ways[List].Err)
	}
	// Connections begin with what is known at once, and later go by the order.
	addrs := f.Addrs()
	if got := addrs(); !slices.Contains(got, "10.0.0.9:2510") {
		t.Errorf("at once: %v", got)
	}
	want := []string{"10.0.0.1:2510", "10.0.0.2:2511", "10.0.0.9:2510"}
	for end := time.Now().Add(5 * time.Second); !slices.Equal(addrs(), want); {
		if time.Now().After(end) {
			t.Fatalf("%v, want %v", addrs(), want)
		}
		time.Sleep(time.Millisecond) // the search is on its way
	}
	none := testConf(t)
	f2 := &Finder{Conf: none, Networks: []net.Interface{}, Resolver: f.Resolver}
	if got := f2.Addrs()(); !slices.Equal(got, want[:2]) {
		t.Errorf("without a list: %v", got)
	}
	for way, text := range map[string]string{"list\n": "10.0.0.9:2510", "list dns": "10.0.0.9:2510",
		"dns": "10.0.0.1:2510"} {
		if err := os.WriteFile(filepath.Join(conf.Path(), "discovery"), []byte(way), 0o644); err != nil {
			t.Fatal(err)
		}
		found, err := f.Find(t.Context())
		if err != nil || texts(found[0].Addrs)[0] != text || len(found) != len(strings.Fields(way)) {
			t.Errorf("%q: %v, %v", way, found, err)
		}
	}
	for _, way := range []string{"", "dns dns", "wins", "\x00"} {
		if err := os.WriteFile(filepath.Join(conf.Path(), "discovery"), []byte(way), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Find(t.Context()); dataplane.KindOf(err) != dataplane.Malformed {
			t.Errorf("%q: %v", way, err)
		}
	}
}

func TestDNSWithoutRecords(t *testing.T) {
	f := &Finder{Conf: testConf(t), Networks: []net.Interface{},
		Resolver: dnsServer(t, nil)}
	if ways := find(t, f); len(ways[DNS].Addrs) != 0 || ways[DNS].Err != nil {
		t.Errorf("%+v", ways[DNS])
	}
	// A name server that says nothing costs the time of a search and no more.
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	f.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn,
		error) {
		return net.Dial("udp4", silent.LocalAddr().String())
	}}
	f.Wait = 100 * time.Millisecond
	started := time.Now()
	ways := find(t, f)
	if ways[DNS].Err == nil || time.Since(started) > 3*time.Second {
		t.Errorf("%+v after %v", ways[DNS], time.Since(started))
	}
}

func loopback(t *testing.T) net.Interface {
	t.Helper()
	network, _, err := networkOf(netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Skip(err)
	}
	return *network
}

// Two servers of the cluster and one of another are announced on the loopback.
func TestMDNS(t *testing.T) {
	lo := loopback(t)
	free, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.LocalAddr().(*net.UDPAddr).Port
	free.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	for i, name := range []string{"c1", "c1", "other"} {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}), uint16(2510+i))
		go func() { ended <- announce(ctx, name, addr, port) }()
	}
	f := &Finder{Conf: testConf(t), Networks: []net.Interface{lo}, port: port,
		Wait: 200 * time.Millisecond, Resolver: dnsServer(t, nil)}
	want := []string{"127.0.0.1:2510", "127.0.0.2:2511"}
	for end := time.Now().Add(10 * time.Second); ; {
		found := find(t, f)[MDNS]
		if slices.Equal(texts(found.Addrs), want) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("found %v, %v", found.Addrs, found.Err)
		}
	}
	stop()
	for range 3 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if err := announce(t.Context(), "c1", netip.MustParseAddrPort("192.0.2.1:1"), port); err == nil {
		t.Error("an address that isn't ours was announced")
	}
	if err := announce(t.Context(), "bad name", netip.MustParseAddrPort("127.0.0.1:1"),
		port); dataplane.KindOf(err) != dataplane.Invalid {
		t.Error(err)
	}
}

func TestAnswers(t *testing.T) {
	addr := netip.MustParseAddrPort("10.1.2.3:2510")
	question, err := mdnsQuestion()
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", cluster.MaxName)
	for _, name := range []string{"c1", "A_b-9", long} {
		answer := parseQuestion(question, name, addr)
		if got := parseAnswer(answer, name); !slices.Equal(got, []netip.AddrPort{addr}) {
			t.Errorf("%s: %v", name, got)
		}
		if got := parseAnswer(answer, "another"); got != nil {
			t.Errorf("%s is taken for another cluster: %v", name, got)
		}
	}
	if parseQuestion(parseQuestion(question, "c1", addr), "c1", addr) != nil {
		t.Error("an answer was answered")
	}
	all := make([]netip.AddrPort, 0, 100)
	for i := range 100 {
		all = append(all, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1))
	}
	if got := clean(append(all, all...)); len(got) != MaxServers {
		t.Errorf("%d addresses are kept", len(got))
	}
}

func FuzzAnswer(f *testing.F) {
	question, err := mdnsQuestion()
	if err != nil {
		f.Fatal(err)
	}
	addr := netip.MustParseAddrPort("10.1.2.3:2510")
	f.Add(question)
	f.Add(parseQuestion(question, "c1", addr))
	f.Fuzz(func(t *testing.T, packet []byte) {
		parseAnswer(packet, "c1")
		parseQuestion(packet, "c1", addr)
	})
}

func TestListIsOptional(t *testing.T) {
	f := &Finder{Conf: testConf(t)}
	if addrs, err := f.list(t.Context()); addrs != nil || err != nil {
		t.Errorf("%v, %v", addrs, err)
	}
	if err := os.MkdirAll(f.Conf.Path(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.Conf.BSPath(), []byte("nonsense\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := f.list(t.Context()); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("nonsense: %v", err)
	}
}
