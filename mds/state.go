package mds

import (
	"fmt"
	"slices"
	"strings"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// DefaultPolicy is what the root directory starts with, and so every file that inherits from it.
var DefaultPolicy = control.Policy{Replicas: 3, Minimum: 2, Domain: DomainHost}

// The failure domains, finest first, as in control.Policy.Domain.
const (
	DomainDisk uint8 = 0
	DomainHost uint8 = 1
	DomainRack uint8 = 2
	DomainRow  uint8 = 3
	DomainRoom uint8 = 4
)

// file is an inode: a file, directory or symlink. A name is the only link to it, so it knows its
// parent and name, and directories are rebuilt from that when a snapshot is restored.
type file struct {
	id                  dataplane.FileID // 0: this entry of the slab is free
	parent              dataplane.FileID // 0: the root, or an orphan
	name                string
	target              string
	size                uint64
	atime, mtime, ctime int64
	mode, uid, gid      uint32
	chunks              uint32
	subdirs             uint32 // derived
	typ                 control.FileType
	policy              control.Policy
	xattrs              []xattr // ascending by name; replaced, never changed in place

	lease *fileLease // who may write it; nil: nobody, and no fence

	slots slotMap   // derived from the chunk records
	dir   *dirIndex // derived; directories only
}

type xattr struct {
	name  string
	value []byte
}

const filesPerPage = 64

type filePage [filesPerPage]file

// fileTable is a slab of files in pages that are copied before their first change while a
// capture is open.
type fileTable struct {
	pages []*filePage
	fresh []bool // per page: not shared with the open capture
	open  bool
	spare []uint32 // free entries
	next  uint32
	byID  map[dataplane.FileID]uint32
}

// get returns a file for reading, or nil. The pointer is stale after the next edit of any file.
func (t *fileTable) get(id dataplane.FileID) *file {
	i, ok := t.byID[id]
	if !ok {
		return nil
	}
	return &t.pages[i/filesPerPage][i%filesPerPage]
}

// edit returns a file that exists for changing.
func (t *fileTable) edit(id dataplane.FileID) *file {
	i, ok := t.byID[id]
	assert(ok, "edit of a file that doesn't exist", id)
	return t.writable(i)
}

func (t *fileTable) writable(i uint32) *file {
	p := i / filesPerPage
	if t.open && !t.fresh[p] {
		clone := *t.pages[p]
		t.pages[p] = &clone
		t.fresh[p] = true
	}
	return &t.pages[p][i%filesPerPage]
}

// add makes an entry for f, whose id must be new, and returns it.
func (t *fileTable) add(f file) *file {
	var i uint32
	if n := len(t.spare); n > 0 {
		i = t.spare[n-1]
		t.spare = t.spare[:n-1]
	} else {
		i = t.next
		t.next++
		if int(i/filesPerPage) == len(t.pages) {
			t.pages = append(t.pages, new(filePage))
			t.fresh = append(t.fresh, true)
		}
	}
	t.byID[f.id] = i
	p := t.writable(i)
	*p = f
	return p
}

func (t *fileTable) remove(id dataplane.FileID) {
	i := t.byID[id]
	*t.writable(i) = file{}
	delete(t.byID, id)
	t.spare = append(t.spare, i)
}

// capture returns the pages as they are now; release ends it. One at a time.
func (t *fileTable) capture() []*filePage {
	assert(!t.open, "second capture of the files")
	t.open = true
	clear(t.fresh)
	return slices.Clone(t.pages)
}

func (t *fileTable) release() { t.open = false }

// CS is what the cluster remembers of a chunk server. An entry is replaced, never changed in
// place, so readers may keep a pointer.
type CS struct {
	ID           dataplane.CSID
	Disk         [16]byte // identity of its directory
	Boot         uint64   // counter of starts at the last registration
	Start        uint64   // random number of the start that registered last; 0: it had none
	Instance     uint64   // peer id of the process that registered last
	Addr         string   // "ip:port" of the data port
	Host         string
	Path         string // of the directory, for people
	Location     string // "room/row/rack"
	Tier         uint8
	Capacity     uint64 // bytes for chunks
	Used         uint64 // bytes, at registration
	RegisteredNs int64
	Dropped      bool   // removed by an administrator: never served again
	Failed       string // not empty: the disk failed, and how
	// Fenced: it was excluded from a chunk since it registered, so it must register again (and
	// forget that chunk) before its lease may be renewed.
	Fenced bool
	// Releasing: it is being drained, and is dropped when it is a member of nothing.
	Releasing bool
}

// configEntry is one entry of the cluster configuration.
type configEntry struct {
	key, value string
	version    uint64
}

type dedupeKey struct{ peer, req uint64 }

// dedupeEntry is what is remembered of a mutation, to answer its retry.
type dedupeEntry struct {
	key  dedupeKey
	kind dataplane.Kind
	msg  string
	file dataplane.FileID
}

// State is the replicated state machine: namespace, chunk table, chunk servers, configuration and
// events. It is deterministic: the same commands give the same state and results on every server.
// It is not safe for concurrent use.
type State struct {
	clusterID   dataplane.ClusterID
	clusterName string
	nowNs       int64 // of the newest command; never goes back
	nextFile    dataplane.FileID
	nextEvent   uint64
	configVer   uint64

	files   fileTable
	orphans []dataplane.FileID // removed files whose chunks aren't all freed yet, ascending
	table   *Table
	cs      []*CS    // index: id; entry 0 and unknown ids are nil
	csLoad  []uint32 // derived: chunks per CS
	config  []configEntry
	events  fifo[control.Event]
	dedupe  fifo[dedupeEntry]
	seen    map[dedupeKey]dedupeEntry // derived from dedupe
	byDisk  map[[16]byte]dataplane.CSID
	leases  leaseState

	trustsImages bool // a deliberate fault, for simulations
}

// NewState returns the state before the first command: a root directory and nothing else.
func NewState() *State {
	s := newEmptyState()
	s.nextFile = dataplane.RootID + 1
	s.nextEvent = 1
	s.files.add(file{id: dataplane.RootID, typ: control.TypeDir, mode: 0o755,
		policy: DefaultPolicy, dir: &dirIndex{}})
	return s
}

func newEmptyState() *State {
	s := &State{table: NewTable(), cs: make([]*CS, 1), csLoad: make([]uint32, 1)}
	s.files.byID = make(map[dataplane.FileID]uint32)
	s.seen = make(map[dedupeKey]dedupeEntry)
	s.byDisk = make(map[[16]byte]dataplane.CSID)
	s.events.max = MaxEvents
	s.dedupe.max = dedupeMax
	return s
}

// Close releases the memory of the chunk table.
func (s *State) Close() { s.table.Close() }

// attr describes a file.
func (s *State) attr(f *file) control.Attr {
	a := control.Attr{File: f.id, Type: f.typ, Mode: f.mode, UID: f.uid, GID: f.gid, Size: f.size,
		Links: 1, ATimeNs: f.atime, MTimeNs: f.mtime, CTimeNs: f.ctime, Target: f.target,
		Allocated: uint64(f.chunks), Policy: f.policy}
	if f.typ == control.TypeDir {
		a.Links = 2 + f.subdirs
		a.Size = dataplane.BlockSize
	}
	return a
}

// server returns the registry entry of a CS, or nil.
func (s *State) server(id dataplane.CSID) *CS {
	if int(id) >= len(s.cs) {
		return nil
	}
	return s.cs[id]
}

// usable says whether chunks may be placed on a CS, as far as the replicated state knows.
func (s *State) usable(id dataplane.CSID) bool {
	c := s.server(id)
	return c != nil && !c.Dropped
}

// countMembers keeps the derived number of chunks per CS.
func (s *State) countMembers(r *Record, add bool) {
	for _, m := range r.members() {
		if int(m.CS) >= len(s.csLoad) {
			continue
		}
		if add {
			s.csLoad[m.CS]++
		} else {
			s.csLoad[m.CS]--
		}
	}
}

// addEvent appends to the event log. Text is cut to its bounds.
func (s *State) addEvent(sev control.Severity, source, code, message string) {
	cut := func(t string) string { return t[:min(len(t), maxEventText)] }
	s.events.push(control.Event{ID: s.nextEvent, TimeNs: s.nowNs, Severity: sev,
		Source: cut(source), Code: cut(code), Message: strings.ToValidUTF8(cut(message), "?")})
	s.nextEvent++
}

// remember stores the result of a mutation for its retries.
func (s *State) remember(e dedupeEntry) {
	if old, forgot := s.dedupe.push(e); forgot {
		delete(s.seen, old.key)
	}
	s.seen[e.key] = e
}

// lookupPath resolves an absolute path without following symlinks.
func (s *State) lookupPath(path string) (*file, error) {
	f := s.files.get(dataplane.RootID)
	if !strings.HasPrefix(path, "/") || len(path) > dataplane.MaxPathLen {
		return nil, dataplane.E("find "+fmt.Sprintf("%.80q", path), dataplane.Invalid,
			fmt.Errorf("a path in the cluster begins with / and has at most %d bytes",
				dataplane.MaxPathLen))
	}
	for _, name := range strings.Split(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if f.typ != control.TypeDir {
			return nil, dataplane.E("find "+path, dataplane.NotDir, nil)
		}
		id := f.dir.find(name)
		if id == 0 {
			return nil, dataplane.E("find "+path, dataplane.NotFound, nil)
		}
		f = s.files.get(id)
	}
	return f, nil
}
