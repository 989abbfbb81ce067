package main

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

// nodesDoc lists the machines of a cluster.
type nodesDoc struct {
	Nodes []nodeDoc `json:"nodes"`
}

// nodeDoc is one machine with its servers. Sizes are in bytes.
type nodeDoc struct {
	Name     string      `json:"name"` // of the host; its address, if no chunk server told the name
	Addrs    []string    `json:"addrs"`
	Location string      `json:"location,omitempty"`
	Status   string      `json:"status"` // "up", "partly up", "down"
	MDS      []nodeMDS   `json:"mds"`
	CS       []nodeCSDoc `json:"cs"`
	Capacity uint64      `json:"capacity"`
	Used     uint64      `json:"used"`
	Chunks   uint64      `json:"chunks"`
}

type nodeMDS struct {
	ID     string `json:"id"`
	Leader bool   `json:"leader"`
	Down   bool   `json:"down"`
}

type nodeCSDoc struct {
	ID     uint32 `json:"id"`
	Status string `json:"status"`
}

func newListNodes(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list-nodes",
		Short: "List the cluster's machines, with the servers on each",
		Long: `List the cluster's machines, with the servers on each. A machine is down when none of its
servers answers. Machines are told apart by the host name that chunk servers report, and
metadata servers by their address. See also: list-services, for each server by itself.`,
		Example: `  pstorage list-nodes
  pstorage list-nodes -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			services, err := ask[control.ServicesDoc](cmd, a, "list the nodes",
				control.AdminListServices, nil)
			if err != nil {
				return err
			}
			doc := nodesOf(&services)
			return a.print(cmd.OutOrStdout(), doc, func(t *table) { showNodes(t, doc) })
		},
	}
	a.addOutput(cmd)
	return cmd
}

// nodesOf groups servers by machine: chunk servers by host name, metadata servers by the address
// that they share with chunk servers.
func nodesOf(services *control.ServicesDoc) nodesDoc {
	doc := nodesDoc{Nodes: []nodeDoc{}}
	find := func(same func(*nodeDoc) bool, name string) *nodeDoc {
		for i := range doc.Nodes {
			if same(&doc.Nodes[i]) {
				return &doc.Nodes[i]
			}
		}
		doc.Nodes = append(doc.Nodes, nodeDoc{Name: name, Addrs: []string{}, MDS: []nodeMDS{},
			CS: []nodeCSDoc{}})
		return &doc.Nodes[len(doc.Nodes)-1]
	}
	for _, c := range services.CS {
		if c.Status == control.CSDropped {
			continue
		}
		ip := ipOf(c.Addr)
		name := cmp.Or(c.Host, ip)
		n := find(func(n *nodeDoc) bool { return n.Name == name }, name)
		n.addAddr(ip)
		n.Location = cmp.Or(n.Location, c.Location)
		n.CS = append(n.CS, nodeCSDoc{c.ID, c.Status})
		n.Capacity, n.Used, n.Chunks = n.Capacity+c.Capacity, n.Used+c.Used, n.Chunks+c.Chunks
	}
	for _, m := range services.MDS {
		ip := ipOf(m.Addr)
		n := find(func(n *nodeDoc) bool { return slices.Contains(n.Addrs, ip) }, ip)
		n.addAddr(ip)
		n.MDS = append(n.MDS, nodeMDS{m.ID, m.Leader, m.Down})
	}
	for i := range doc.Nodes {
		doc.Nodes[i].judge()
	}
	slices.SortStableFunc(doc.Nodes, func(a, b nodeDoc) int { return strings.Compare(a.Name, b.Name) })
	return doc
}

func ipOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

func (n *nodeDoc) addAddr(ip string) {
	if ip != "" && !slices.Contains(n.Addrs, ip) {
		n.Addrs = append(n.Addrs, ip)
	}
}

// judge fills in the status.
func (n *nodeDoc) judge() {
	up, all := 0, len(n.MDS)+len(n.CS)
	for _, m := range n.MDS {
		if !m.Down {
			up++
		}
	}
	for _, c := range n.CS {
		switch c.Status {
		case control.CSActive, control.CSIll, control.CSReleasing:
			up++
		}
	}
	switch up {
	case all:
		n.Status = "up"
	case 0:
		n.Status = "down"
	default:
		n.Status = "partly up"
	}
}

func showNodes(t *table, doc nodesDoc) {
	t.row("NODE", "STATUS", "ADDRESS", "MDS", "CS", "USED", "CAPACITY", "CHUNKS", "LOCATION")
	for _, n := range doc.Nodes {
		var servers, disks []string
		for _, m := range n.MDS {
			text := m.ID
			switch {
			case m.Leader:
				text += " (leader)"
			case m.Down:
				text += " (down)"
			}
			servers = append(servers, text)
		}
		for _, c := range n.CS {
			text := fmt.Sprint(c.ID)
			if c.Status != control.CSActive {
				text += " (" + c.Status + ")"
			}
			disks = append(disks, text)
		}
		t.row(n.Name, n.Status, strings.Join(n.Addrs, " "), strings.Join(servers, ", "),
			strings.Join(disks, ", "), size(n.Used), size(n.Capacity), n.Chunks, n.Location)
	}
}
