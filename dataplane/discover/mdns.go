package discover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"pstorage/dataplane/cluster"
)

// A metadata server is announced by multicast DNS as an instance of the service
// _pstorage._tcp.local, with four records:
//
//	_pstorage._tcp.local            PTR  NODE._pstorage._tcp.local
//	NODE._pstorage._tcp.local       SRV  its port, NODE.local
//	NODE._pstorage._tcp.local       TXT  cluster=CLUSTER
//	NODE.local                      A    its address
//
// NODE is pstorage-CLUSTER-ADDRESS-PORT, the address as 8 hexadecimal digits. Only questions for the
// PTR are answered, with all four, and by unicast (RFC 6762, 6.7): who asks isn't a full resolver
// and sends from a port of its own.
const (
	mdnsService = "_pstorage._tcp.local."
	mdnsPort    = 5353
	mdnsTTL     = 120 // seconds
	maxPacket   = 9000
	txtCluster  = "cluster="
)

var mdnsGroup = net.IPv4(224, 0, 0, 251)

func (f *Finder) mdnsAddr() *net.UDPAddr {
	port := f.port
	if port == 0 {
		port = mdnsPort
	}
	return &net.UDPAddr{IP: mdnsGroup, Port: port}
}

// mdns asks the networks and collects answers until ctx ends.
func (f *Finder) mdns(ctx context.Context) ([]netip.AddrPort, error) {
	networks := f.Networks
	if networks == nil {
		var err error
		if networks, err = multicastNetworks(); err != nil {
			return nil, err
		}
	}
	question, err := mdnsQuestion()
	if err != nil {
		return nil, err
	}
	answers := make(chan []netip.AddrPort)
	asked := 0
	for i := range networks {
		conn, aerr := ask(&networks[i], f.mdnsAddr(), question)
		if aerr != nil {
			err = aerr
			continue
		}
		asked++
		go func() { answers <- f.collect(ctx, conn) }()
	}
	var all []netip.AddrPort
	for range asked {
		all = append(all, <-answers...)
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	if asked > 0 {
		err = nil
	}
	return all, err
}

// multicastNetworks returns the interfaces that others can be reached on by multicast.
func multicastNetworks() (networks []net.Interface, err error) {
	all, err := net.Interfaces()
	for _, i := range all {
		const want = net.FlagUp | net.FlagMulticast
		if i.Flags&want == want && i.Flags&net.FlagLoopback == 0 && ipv4Of(&i) != nil {
			networks = append(networks, i)
		}
	}
	return networks, err
}

// ipv4Of returns the first IPv4 network of an interface.
func ipv4Of(i *net.Interface) *net.IPNet {
	addrs, err := i.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			return n
		}
	}
	return nil
}

func mdnsQuestion() ([]byte, error) {
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(mdnsService), Type: dnsmessage.TypePTR,
		Class: dnsmessage.ClassINET}}}
	return m.Pack()
}

// ask sends the question to one network. Answers come to the connection.
func ask(network *net.Interface, group *net.UDPAddr, question []byte) (*net.UDPConn, error) {
	own := ipv4Of(network)
	if own == nil {
		return nil, errors.New(network.Name + " has no IPv4 address")
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: own.IP})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF,
				&unix.IPMreqn{Ifindex: int32(network.Index)})
		})
		err = errors.Join(err, cerr)
	}
	if err == nil {
		_, err = conn.WriteToUDP(question, group)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// maxAnswers bounds the answers of one network that are looked at.
const maxAnswers = 256

func (f *Finder) collect(ctx context.Context, conn *net.UDPConn) (all []netip.AddrPort) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	packet := make([]byte, maxPacket)
	for range maxAnswers {
		n, _, err := conn.ReadFromUDPAddrPort(packet)
		if err != nil {
			break // the time is over
		}
		all = append(all, parseAnswer(packet[:n], f.Conf.Name())...)
	}
	return all
}

// parseAnswer returns the servers of a cluster in an answer from the network. Whatever isn't as it
// should be is passed over.
func parseAnswer(packet []byte, name string) (servers []netip.AddrPort) {
	var m dnsmessage.Message
	if m.Unpack(packet) != nil || !m.Response || m.RCode != dnsmessage.RCodeSuccess {
		return nil
	}
	ours := map[string]bool{} // instances of the cluster
	hosts := map[string]netip.Addr{}
	for _, r := range append(m.Answers, m.Additionals...) {
		switch body := r.Body.(type) {
		case *dnsmessage.TXTResource:
			if slices.Contains(body.TXT, txtCluster+name) {
				ours[r.Header.Name.String()] = true
			}
		case *dnsmessage.AResource:
			hosts[r.Header.Name.String()] = netip.AddrFrom4(body.A)
		}
	}
	for _, r := range append(m.Answers, m.Additionals...) {
		instance := r.Header.Name.String()
		srv, ok := r.Body.(*dnsmessage.SRVResource)
		if !ok || !ours[instance] || !strings.HasSuffix(instance, "."+mdnsService) {
			continue
		}
		if ip, ok := hosts[srv.Target.String()]; ok {
			servers = append(servers, netip.AddrPortFrom(ip, srv.Port))
		}
	}
	return servers
}

// Announce answers questions for the metadata server at addr on the network that addr is on, until
// ctx ends. The error says why that can't be done there.
func Announce(ctx context.Context, name string, addr netip.AddrPort) error {
	return announce(ctx, name, addr, mdnsPort)
}

func announce(ctx context.Context, name string, addr netip.AddrPort, port int) error {
	if err := cluster.CheckName(name); err != nil {
		return err
	}
	network, own, err := networkOf(addr.Addr())
	if err != nil {
		return err
	}
	conn, err := net.ListenMulticastUDP("udp4", network, &net.UDPAddr{IP: mdnsGroup, Port: port})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	bucket := float64(maxBurst)
	last := time.Now()
	packet := make([]byte, maxPacket)
	for {
		n, from, err := conn.ReadFromUDP(packet)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		now := time.Now()
		bucket = min(maxBurst, bucket+now.Sub(last).Seconds()*maxBurst)
		last = now
		// Nobody outside the network is answered, nor anybody too often.
		answer := parseQuestion(packet[:n], name, addr)
		if answer == nil || !own.Contains(from.IP) || bucket < 1 {
			continue
		}
		bucket--
		conn.WriteToUDP(answer, from) // it asks again if that is lost
	}
}

const maxBurst = 20 // answers at once, and per second

// networkOf returns the interface that has an address.
func networkOf(ip netip.Addr) (*net.Interface, *net.IPNet, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, nil, err
	}
	for i := range all {
		addrs, err := all[i].Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if ok && ip.Is4() && (n.IP.Equal(ip.AsSlice()) || ip.IsLoopback() && n.IP.IsLoopback()) {
				return &all[i], n, nil
			}
		}
	}
	return nil, nil, errors.New(ip.String() + " is no IPv4 address of this machine")
}

// parseQuestion returns the answer to a question from the network; nil: it isn't for us.
func parseQuestion(packet []byte, name string, addr netip.AddrPort) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(packet)
	if err != nil || h.Response || h.OpCode != 0 {
		return nil
	}
	for range maxQuestions {
		q, err := p.Question()
		if err != nil {
			return nil
		}
		if strings.EqualFold(q.Name.String(), mdnsService) && q.Type == dnsmessage.TypePTR {
			answer, err := mdnsAnswer(h.ID, q, name, addr)
			if err != nil {
				return nil
			}
			return answer
		}
	}
	return nil
}

const maxQuestions = 16 // of one packet that are looked at

func mdnsAnswer(id uint16, q dnsmessage.Question, name string, addr netip.AddrPort) ([]byte,
	error) {
	// A label has at most 63 bytes.
	ip := addr.Addr().As4()
	node := fmt.Sprintf("pstorage-%.39s-%x-%d", name, ip[:], addr.Port())
	instance, err := dnsmessage.NewName(node + "." + mdnsService)
	if err != nil {
		return nil, err
	}
	host, err := dnsmessage.NewName(node + ".local.")
	if err != nil {
		return nil, err
	}
	header := func(n dnsmessage.Name, t dnsmessage.Type) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: n, Type: t, Class: dnsmessage.ClassINET, TTL: mdnsTTL}
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, Response: true, Authoritative: true},
		Questions: []dnsmessage.Question{q},
		Answers: []dnsmessage.Resource{{Header: header(q.Name, dnsmessage.TypePTR),
			Body: &dnsmessage.PTRResource{PTR: instance}}},
		Additionals: []dnsmessage.Resource{
			{Header: header(instance, dnsmessage.TypeSRV),
				Body: &dnsmessage.SRVResource{Port: addr.Port(), Target: host}},
			{Header: header(instance, dnsmessage.TypeTXT),
				Body: &dnsmessage.TXTResource{TXT: []string{txtCluster + name}}},
			{Header: header(host, dnsmessage.TypeA),
				Body: &dnsmessage.AResource{A: ip}},
		}}
	return m.Pack()
}
