package mds

import (
	"fmt"
	"slices"
	"strings"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// cmdInit names the cluster. Only the first one counts.
type cmdInit struct {
	origin
	ClusterID   dataplane.ClusterID
	ClusterName string
}

func (c *cmdInit) op() uint8 { return opInit }

func (c *cmdInit) put(e *encoder) {
	e.bytes(c.ClusterID[:])
	e.str(c.ClusterName)
}

func (c *cmdInit) get(d *decoder) {
	id := d.raw()
	if len(id) != len(c.ClusterID) {
		d.bad = true
		return
	}
	copy(c.ClusterID[:], id)
	c.ClusterName = d.str()
}

func (c *cmdInit) apply(s *State, r *Result) {
	if s.clusterID != (dataplane.ClusterID{}) {
		if s.clusterID != c.ClusterID {
			r.fail(dataplane.WrongCluster, "this is cluster %v", s.clusterID)
		}
		return
	}
	s.clusterID, s.clusterName = c.ClusterID, c.ClusterName
	root := s.files.edit(dataplane.RootID)
	root.atime, root.mtime, root.ctime = s.nowNs, s.nowNs, s.nowNs
	s.addEvent(control.Info, "mds", "cluster-created", "cluster "+c.ClusterName+" created")
}

// cmdRegisterCS registers a chunk server process.
type cmdRegisterCS struct {
	origin
	Instance uint64   // peer id of the process
	CS       CS       // as it announces itself
	Starts   []uint64 // of RegisterCSReq, but for the last, which is CS.Start
	// Confirmed is that of RegisterCSReq; not kept without CS.Start.
	Confirmed uint64
}

func (c *cmdRegisterCS) op() uint8 { return opRegisterCS }

func (c *cmdRegisterCS) put(e *encoder) {
	e.u64(c.Instance)
	putCS(e, &c.CS)
	if c.CS.Start != 0 {
		e.u64(c.Confirmed)
		e.u32(uint32(len(c.Starts)))
		for _, n := range c.Starts {
			e.u64(n)
		}
	}
}

func (c *cmdRegisterCS) get(d *decoder) {
	c.Instance = d.u64()
	c.CS = getCS(d)
	if c.CS.Start != 0 {
		c.Confirmed = d.u64()
		c.Starts = make([]uint64, d.count(8))
		for i := range c.Starts {
			c.Starts[i] = d.u64()
		}
	}
}

func putCS(e *encoder, c *CS) {
	e.u32(uint32(c.ID))
	e.bytes(c.Disk[:])
	e.u64(c.Boot)
	e.u64(c.Instance)
	e.str(c.Addr)
	e.str(c.Host)
	e.str(c.Path)
	e.str(c.Location)
	e.u8(c.Tier)
	e.u64(c.Capacity)
	e.u64(c.Used)
	e.i64(c.RegisteredNs)
	e.bool(c.Dropped)
	e.str(c.Failed)
	flags := uint8(0)
	if c.Fenced {
		flags |= csFenced
	}
	if c.Releasing {
		flags |= csReleasing
	}
	if c.Start != 0 {
		flags |= csStart
	}
	e.u8(flags)
	if c.Start != 0 {
		e.u64(c.Start)
	}
}

// Flags of a chunk server, the byte that ends what putCS writes, but for what they say follows.
const (
	csFenced    uint8 = 1 << 0
	csReleasing uint8 = 1 << 1
	csStart     uint8 = 1 << 2 // Start follows
)

func getCS(d *decoder) CS {
	c := CS{ID: dataplane.CSID(d.u32())}
	if disk := d.raw(); len(disk) == len(c.Disk) {
		copy(c.Disk[:], disk)
	} else {
		d.bad = true
	}
	c.Boot, c.Instance = d.u64(), d.u64()
	c.Addr, c.Host, c.Path, c.Location = d.str(), d.str(), d.str(), d.str()
	c.Tier = d.u8()
	c.Capacity, c.Used = d.u64(), d.u64()
	c.RegisteredNs = d.i64()
	c.Dropped = d.bool()
	c.Failed = d.str()
	flags := d.u8()
	c.Fenced, c.Releasing = flags&csFenced != 0, flags&csReleasing != 0
	if flags&csStart != 0 {
		c.Start = d.u64()
	}
	return c
}

// registration is the outcome of registrationCase.
type registration uint8

const (
	regNew     registration = iota // give it an id
	regRestart                     // known, a newer process
	regAgain                       // known, the same process again
	regDropped                     // removed from the cluster
	regUnknown                     // names an id that this cluster never gave, or of another disk
	regBehind                      // not a later start on the same directory: a clone, or rolled back
	regFailed                      // its disk failed under this very process
	regAhead                       // it was registered since what is recorded, which is an older copy
)

// registrationCase decides what a registration is (invariants I7 and I8). known is the entry of
// the disk's identity, or nil; named is the entry of the id that the process says it has, or nil.
//
// A later start on the same directory has the higher counter, and remembers the start that is
// recorded: an older copy of the directory may have been started as often, but not that time. A
// record without one is an older program's.
func registrationCase(r *cmdRegisterCS, known, named *CS) registration {
	c := &r.CS
	switch {
	case known == nil && c.ID == 0:
		return regNew
	case known == nil || (c.ID != 0 && (named == nil || named.ID != known.ID)):
		return regUnknown
	case known.Dropped:
		return regDropped
	case c.Boot > known.Boot && r.Confirmed > known.Boot:
		return regAhead
	case c.Boot > known.Boot && (known.Start == 0 || c.Start == known.Start ||
		slices.Contains(r.Starts, known.Start)):
		return regRestart
	case c.Boot == known.Boot && r.Instance == known.Instance && known.Failed != "":
		return regFailed
	case c.Boot == known.Boot && r.Instance == known.Instance:
		return regAgain
	}
	return regBehind
}

func (c *cmdRegisterCS) apply(s *State, r *Result) {
	n := c.CS
	var known *CS
	if id, ok := s.byDisk[n.Disk]; ok {
		known = s.server(id)
	}
	reg := registrationCase(c, known, s.server(n.ID))
	if reg == regBehind && s.trustsImages {
		reg = regRestart
	}
	switch reg {
	case regUnknown:
		r.fail(dataplane.Denied, "CS %d with disk identity %x isn't of this cluster", n.ID, n.Disk)
		return
	case regDropped:
		r.fail(dataplane.Denied, "CS %d was removed from the cluster: make a new one", known.ID)
		return
	case regBehind:
		why := "it never had start %d, which is the last one recorded"
		if n.Boot <= known.Boot {
			why = "its start counter isn't above the recorded %d"
		}
		r.fail(dataplane.Conflict, "CS %d at %s, start %d: "+why+": the directory %s is a copy or "+
			"was rolled back and must not serve; drop this CS and make a new one", known.ID, n.Addr,
			n.Boot, known.Boot, n.Path)
		return
	case regAhead:
		r.fail(dataplane.Internal, "CS %d at %s was registered as start %d, and what the metadata "+
			"servers have on record is start %d: an older copy of their data was put back, or their "+
			"disks lost what they had confirmed. Nothing was changed, and this server serves nothing, "+
			"as chunks that are newer would be deleted. Put the right data back", known.ID, n.Addr,
			c.Confirmed, known.Boot)
		return
	case regFailed:
		r.fail(dataplane.Denied, "the disk of CS %d failed (%s): mend it and start it again, or "+
			"drop it", known.ID, known.Failed)
		return
	case regNew:
		if len(s.cs) > MaxCS {
			r.fail(dataplane.NoSpace, "all %d ids of chunk servers are used", MaxCS)
			return
		}
		n.ID = dataplane.CSID(len(s.cs))
		s.cs = append(s.cs, nil)
		s.csLoad = append(s.csLoad, 0)
		s.byDisk[n.Disk] = n.ID
		s.addEvent(control.Info, fmt.Sprintf("cs %d", n.ID), "cs-new",
			fmt.Sprintf("new chunk server at %s, %s on %s", n.Addr, n.Path, n.Host))
	case regRestart:
		n.ID = known.ID
		s.addEvent(control.Info, fmt.Sprintf("cs %d", n.ID), "cs-registered",
			fmt.Sprintf("chunk server at %s registered, start %d", n.Addr, n.Boot))
	case regAgain:
		n.ID = known.ID
	}
	n.Instance, n.RegisteredNs = c.Instance, s.nowNs
	n.Dropped, n.Failed, n.Fenced = false, "", false
	n.Releasing = known != nil && known.Releasing
	s.cs[n.ID] = &n
	r.CS = n.ID
}

// cmdAddEvent appends to the event log.
type cmdAddEvent struct {
	origin
	Severity              control.Severity
	Source, Code, Message string
}

func (c *cmdAddEvent) op() uint8 { return opAddEvent }

func (c *cmdAddEvent) put(e *encoder) {
	c.origin.put(e)
	e.u8(uint8(c.Severity))
	e.str(c.Source)
	e.str(c.Code)
	e.str(c.Message)
}

func (c *cmdAddEvent) get(d *decoder) {
	c.origin.get(d)
	c.Severity = control.Severity(d.u8())
	c.Source, c.Code, c.Message = d.str(), d.str(), d.str()
}

func (c *cmdAddEvent) apply(s *State, _ *Result) {
	s.addEvent(c.Severity, c.Source, c.Code, c.Message)
}

// cmdSetConfig changes an entry of the cluster configuration by compare-and-set on its version;
// version 0 is "not there". An empty value removes it.
type cmdSetConfig struct {
	origin
	Key, Value string
	Version    uint64
	Any        bool // whatever the version is
}

func (c *cmdSetConfig) op() uint8 { return opSetConfig }

func (c *cmdSetConfig) put(e *encoder) {
	c.origin.put(e)
	e.str(c.Key)
	e.str(c.Value)
	e.u64(c.Version)
	e.bool(c.Any)
}

func (c *cmdSetConfig) get(d *decoder) {
	c.origin.get(d)
	c.Key, c.Value = d.str(), d.str()
	c.Version = d.u64()
	c.Any = d.bool()
}

func (c *cmdSetConfig) apply(s *State, r *Result) {
	i, found := slices.BinarySearchFunc(s.config, c.Key, func(e configEntry, key string) int {
		return strings.Compare(e.key, key)
	})
	version := uint64(0)
	if found {
		version = s.config[i].version
	}
	switch {
	case c.Key == "" || len(c.Key) > dataplane.MaxNameLen || len(c.Value) > dataplane.MaxPathLen:
		r.fail(dataplane.Invalid, "configuration key of %d bytes, value of %d", len(c.Key),
			len(c.Value))
		return
	case !c.Any && version != c.Version:
		r.fail(dataplane.Conflict, "%s is at version %d, not %d", c.Key, version, c.Version)
		return
	case !found && len(s.config) >= MaxConfigKeys:
		r.fail(dataplane.NoSpace, "%d configuration keys", len(s.config))
		return
	}
	s.configVer++
	e := configEntry{c.Key, c.Value, s.configVer}
	list := slices.Clone(s.config) // a capture may hold the old one
	switch {
	case c.Value == "" && found:
		list = slices.Delete(list, i, i+1)
	case c.Value == "":
	case found:
		list[i] = e
	default:
		list = slices.Insert(list, i, e)
	}
	s.config = list
}
