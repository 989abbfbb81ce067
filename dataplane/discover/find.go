package discover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
)

// The ways to find metadata servers.
const (
	DNS  = "dns"
	MDNS = "mdns"
	List = "list"
)

// MaxServers bounds the servers that one way gives; there can't be more than a few in a cluster.
const MaxServers = 16

// Found is what one way has given.
type Found struct {
	Way   string
	Addrs []netip.AddrPort
	Err   error // why there is nothing, or not all
}

// Finder looks for the servers of one cluster. Its zero value but for Conf is for use.
type Finder struct {
	Conf     *cluster.Conf
	Resolver *net.Resolver // nil: the system's
	// Networks that are asked by multicast; nil: all that the node is on, but the loopback.
	Networks []net.Interface
	// Wait is for how long answers are collected: 1 s if 0.
	Wait time.Duration
	port int // of multicast DNS, for tests; 0: 5353
}

// Order returns the ways to be tried, in their order.
func (f *Finder) Order() ([]string, error) {
	path := filepath.Join(f.Conf.Path(), "discovery")
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		path = filepath.Join(f.Conf.Path(), "../../discovery")
		text, err = os.ReadFile(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return []string{DNS, MDNS, List}, nil
	}
	if err != nil {
		return nil, dataplane.E("read "+path, dataplane.IOError, err)
	}
	ways := strings.Fields(string(text))
	for i, way := range ways {
		if way != DNS && way != MDNS && way != List || slices.Contains(ways[:i], way) {
			return nil, dataplane.E("read "+path, dataplane.Malformed,
				fmt.Errorf("%.20q isn't one of dns, mdns and list, each once", way))
		}
	}
	if len(ways) == 0 {
		return nil, dataplane.E("read "+path, dataplane.Malformed, errors.New("it names no way"))
	}
	return ways, nil
}

// Find tries all ways at the same time, and returns what each has given in their order.
func (f *Finder) Find(ctx context.Context) ([]Found, error) {
	ways, err := f.Order()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.wait())
	defer cancel()
	found := make([]Found, len(ways))
	var all sync.WaitGroup
	for i, way := range ways {
		all.Go(func() {
			look := map[string]func(context.Context) ([]netip.AddrPort, error){
				DNS: f.dns, MDNS: f.mdns, List: f.list}[way]
			addrs, err := look(ctx)
			found[i] = Found{way, clean(addrs), err}
		})
	}
	all.Wait()
	return found, nil
}

func (f *Finder) wait() time.Duration {
	if f.Wait != 0 {
		return f.Wait
	}
	return time.Second
}

// clean leaves out what no server can have as its address, what is there twice, and too many.
func clean(addrs []netip.AddrPort) (kept []netip.AddrPort) {
	for _, a := range addrs {
		ip := a.Addr().Unmap()
		a = netip.AddrPortFrom(ip, a.Port())
		ok := ip.IsValid() && !ip.IsUnspecified() && !ip.IsMulticast() && a.Port() != 0 &&
			ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
		if ok && !slices.Contains(kept, a) && len(kept) < MaxServers {
			kept = append(kept, a)
		}
	}
	return kept
}

// list reads bs.list.
func (f *Finder) list(context.Context) (addrs []netip.AddrPort, err error) {
	texts, err := f.Conf.LoadBS()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, text := range texts {
		if a, perr := netip.ParseAddrPort(text); perr == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs, err
}

// dns looks the SRV records up. They are sorted by priority and, at random, by weight.
func (f *Finder) dns(ctx context.Context) (addrs []netip.AddrPort, err error) {
	resolver := f.Resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	_, records, err := resolver.LookupSRV(ctx, "pstorage", "tcp", f.Conf.Name())
	var none *net.DNSError
	if errors.As(err, &none) && none.IsNotFound {
		return nil, nil
	}
	for _, r := range records[:min(len(records), MaxServers)] {
		ips, lerr := resolver.LookupNetIP(ctx, "ip", r.Target)
		if lerr != nil {
			err = lerr
			continue
		}
		for _, ip := range ips[:min(len(ips), MaxServers)] {
			addrs = append(addrs, netip.AddrPortFrom(ip, r.Port))
		}
	}
	return addrs, err
}

// refresh is how long what DNS and multicast have given is used, while connections are made.
const refresh = 30 * time.Second

// Addrs returns what connections are made with: a function that gives the addresses to try, best
// first. It doesn't wait for DNS and multicast as long as bs.list has something: what they give
// comes first in later calls. It never fails: with nothing there is nothing to try.
func (f *Finder) Addrs() func() []string {
	var mu sync.Mutex // guards what follows
	var found []Found
	var until time.Time
	var looking chan struct{} // closed when the search that is under way has ended; nil: none is
	look := func() <-chan struct{} {
		if looking == nil && time.Now().After(until) {
			looking = make(chan struct{})
			go func(done chan struct{}) {
				now, err := f.Find(context.Background())
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					found = now
				}
				looking, until = nil, time.Now().Add(refresh)
				close(done)
			}(looking)
		}
		return looking
	}
	return func() []string {
		ways, err := f.Order()
		list := f.Conf.BSOrNone()
		if err != nil || slices.Equal(ways, []string{List}) {
			return list
		}
		mu.Lock()
		defer mu.Unlock()
		if done := look(); done != nil && len(list) == 0 {
			mu.Unlock()
			<-done
			mu.Lock()
		}
		return merge(ways, found, list)
	}
}

// merge puts the addresses in the order of the ways, with bs.list as it is now.
func merge(ways []string, found []Found, list []string) (all []string) {
	add := func(addr string) {
		if !slices.Contains(all, addr) {
			all = append(all, addr)
		}
	}
	for _, way := range ways {
		if way == List {
			for _, addr := range list {
				add(addr)
			}
			continue
		}
		for _, f := range found {
			if f.Way == way {
				for _, addr := range f.Addrs {
					add(addr.String())
				}
			}
		}
	}
	return all
}
