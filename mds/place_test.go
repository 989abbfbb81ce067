package mds

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// testNodes makes servers: one per string "host/rack/row/room tier chunksFree".
func testNodes(specs ...string) []node {
	domains := domainsOf{ids: map[string]uint32{}}
	var nodes []node
	for i, spec := range specs {
		var host, rack, row, room string
		var tier uint8
		var free uint64
		if _, err := fmt.Sscanf(spec, "%s %s %s %s %d %d", &host, &rack, &row, &room, &tier,
			&free); err != nil {
			panic(err)
		}
		c := &CS{ID: dataplane.CSID(i + 1), Host: host, Location: room + "/" + row + "/" + rack}
		nodes = append(nodes, node{cs: c.ID, tier: tier, domain: domains.of(c),
			size: 100 * dataplane.ChunkSize, free: free * dataplane.ChunkSize})
	}
	return nodes
}

func pol(replicas, minimum, domain uint8) control.Policy {
	return control.Policy{Replicas: replicas, Minimum: minimum, Domain: domain}
}

func TestPlace(t *testing.T) {
	oneHost := []string{"h a b c 0 9", "h a b c 0 9", "h a b c 0 9", "h a b c 0 9"}
	threeHosts := []string{"h1 a b c 0 9", "h1 a b c 0 9", "h2 a b c 0 9", "h3 a b c 0 9"}
	racks := []string{"h1 r1 b c 0 9", "h2 r1 b c 0 9", "h3 r2 b c 0 9", "h4 r2 b c 0 9"}
	for name, tc := range map[string]struct {
		nodes    []string
		p        control.Policy
		n        int // replicas placed, 0: NoSpace
		level    uint8
		domains  int // different domains of the level used
		fallback bool
		tier     int // -1: any
	}{
		"no servers":     {nil, pol(1, 1, 0), 0, 0, 0, false, -1},
		"disks":          {oneHost, pol(3, 2, 0), 3, DomainDisk, 3, false, -1},
		"one host":       {oneHost, pol(3, 2, 1), 3, DomainDisk, 3, true, -1},
		"hosts":          {threeHosts, pol(3, 2, 1), 3, DomainHost, 3, false, -1},
		"too few hosts":  {threeHosts, pol(4, 2, 1), 4, DomainHost, 3, true, -1},
		"racks":          {racks, pol(2, 1, 2), 2, DomainRack, 2, false, -1},
		"rack then host": {racks, pol(3, 1, 2), 3, DomainHost, 3, true, -1},
		"rooms":          {racks, pol(3, 1, 4), 3, DomainHost, 3, true, -1},
		"degraded":       {oneHost[:2], pol(3, 2, 0), 2, DomainDisk, 2, false, -1},
		"below minimum":  {oneHost[:1], pol(3, 2, 0), 0, 0, 0, false, -1},
		"eight":          {append(oneHost, oneHost...), pol(8, 8, 0), 8, DomainDisk, 8, false, -1},
		"full": {[]string{"h1 a b c 0 0", "h2 a b c 0 9", "h3 a b c 0 0"},
			pol(2, 1, 0), 1, DomainDisk, 1, false, -1},
		"tier": {[]string{"h1 a b c 0 9", "h2 a b c 1 9", "h3 a b c 1 9", "h4 a b c 0 9"},
			control.Policy{Replicas: 2, Minimum: 1, Domain: 1, Tier: 1}, 2, DomainHost, 2, false, 1},
		"tier spills over": {[]string{"h1 a b c 0 9", "h2 a b c 1 9", "h2 a b c 1 9"},
			control.Policy{Replicas: 2, Minimum: 1, Domain: 1, Tier: 1}, 2, DomainHost, 2, false, -1},
	} {
		for seed := range uint64(50) {
			nodes := testNodes(tc.nodes...)
			p := placer{nodes: nodes, rng: rand.New(rand.NewPCG(seed, 1))}
			got, err := p.place(tc.p, 5)
			if tc.n == 0 {
				if dataplane.KindOf(err) != dataplane.NoSpace {
					t.Errorf("%s: %v, %v", name, got, err)
				}
				continue
			}
			used, cs := map[uint32]bool{}, map[dataplane.CSID]bool{}
			for _, m := range got.members[:got.n] {
				used[nodes[m-1].domain[tc.level]] = true
				cs[m] = true
				if tc.tier >= 0 && int(nodes[m-1].tier) != tc.tier {
					t.Errorf("%s, seed %d: tier %d", name, seed, nodes[m-1].tier)
				}
			}
			if err != nil || int(got.n) != tc.n || len(cs) != tc.n || len(used) != tc.domains ||
				got.fallback != tc.fallback || got.index != 5 {
				t.Errorf("%s, seed %d: %+v, %v", name, seed, got, err)
			}
		}
	}
}

// TestPlaceBalance says that load follows free space, that everything is used, and that what is
// placed counts at once.
func TestPlaceBalance(t *testing.T) {
	rng := testRand(t)
	var specs []string
	for i := range 20 {
		free := 100
		if i >= 10 {
			free = 50
		}
		specs = append(specs, fmt.Sprintf("h%d a b c 0 %d", i, free))
	}
	nodes := testNodes(specs...)
	p := placer{nodes: nodes, rng: rng}
	heads := make([]int, 20)
	p32 := pol(3, 2, DomainHost)
	for i := range 200 {
		got, err := p.place(p32, 0)
		if err != nil {
			t.Fatalf("chunk %d: %v", i, err)
		}
		heads[got.members[0]-1]++
	}
	// 600 of 1500 were taken; the emptier ones gave more.
	a, b := uint64(0), uint64(0)
	for i, n := range nodes {
		if i < 10 {
			a += 100 - n.free/dataplane.ChunkSize
		} else {
			b += 50 - n.free/dataplane.ChunkSize
		}
	}
	if a+b != 600 || a < 2*b {
		t.Errorf("taken from the emptier %d, from the fuller %d", a, b)
	}
	if heads[0] == 0 && heads[1] == 0 && heads[2] == 0 {
		t.Errorf("heads %v", heads)
	}
	// Until the very end: 900 left.
	for i := 0; ; i++ {
		if _, err := p.place(p32, 0); err != nil {
			if i < 290 {
				t.Errorf("full after %d more chunks: %v", i, err)
			}
			break
		}
	}
}

func TestPlaceAllocs(t *testing.T) {
	var specs []string
	for i := range 1000 {
		specs = append(specs, fmt.Sprintf("h%d a b c 0 1000000", i))
	}
	p := placer{nodes: testNodes(specs...), rng: rand.New(rand.NewPCG(1, 1))}
	p32 := pol(3, 2, DomainHost)
	n := testing.AllocsPerRun(1000, func() {
		if _, err := p.place(p32, 0); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
