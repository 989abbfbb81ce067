package fuse

import (
	"cmp"
	"context"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// memory is a backend in memory: names and data as a cluster has them, without the cluster.
type memory struct {
	mu     sync.Mutex
	nodes  map[dataplane.FileID]*memNode
	opened map[*client.File]*memNode
	last   dataplane.FileID
	hung   map[*client.Op]bool
	loop   *uring.Loop
	unseen map[string]bool // names that another host makes when they have been looked up

	looking int // lookups of "hang" so far
	durable int // writes that had to be durable, and flushes
}

type memNode struct {
	attr    control.Attr
	parent  dataplane.FileID
	entries map[string]dataplane.FileID
	blocks  map[int64][]byte // of memBlock bytes
	xattrs  map[string][]byte
	opens   int
}

const memBlock = 64 << 10

var _ backend = (*memory)(nil)

func newMemory() *memory { return newMemoryOn(newTestLoop()) }

func newMemoryOn(l *uring.Loop) *memory {
	m := &memory{nodes: map[dataplane.FileID]*memNode{}, opened: map[*client.File]*memNode{},
		last: dataplane.RootID, hung: map[*client.Op]bool{}, loop: l}
	m.nodes[dataplane.RootID] = &memNode{entries: map[string]dataplane.FileID{},
		attr: control.Attr{File: dataplane.RootID, Type: control.TypeDir, Mode: 0755, Links: 2}}
	return m
}

// newTestLoop runs a loop until the process ends.
func newTestLoop() *uring.Loop {
	l, err := uring.NewLoop(uring.LoopOptions{Ring: uring.RingOptions{Flags: LoopFlags},
		PoolSize: 1 << 20})
	if err != nil {
		panic(err)
	}
	go func() {
		if err := l.Run(); err != nil {
			panic(err)
		}
	}()
	return l
}

func fail(k dataplane.Kind) error { return dataplane.E("memory", k, nil) }

func (m *memory) dir(id dataplane.FileID) (*memNode, error) {
	n := m.nodes[id]
	switch {
	case n == nil:
		return nil, fail(dataplane.NotFound)
	case n.entries == nil:
		return nil, fail(dataplane.NotDir)
	}
	return n, nil
}

func (m *memory) child(parent dataplane.FileID, name string) (*memNode, error) {
	d, err := m.dir(parent)
	if err != nil {
		return nil, err
	}
	id, ok := d.entries[name]
	if !ok {
		return nil, fail(dataplane.NotFound)
	}
	return m.nodes[id], nil
}

func (n *memNode) copyAttr() *control.Attr {
	a := n.attr
	a.Allocated = 0
	if len(n.blocks) > 0 {
		a.Allocated = a.Size/dataplane.ChunkSize + 1
	}
	return &a
}

func (m *memory) Lookup(ctx context.Context, parent dataplane.FileID,
	name string) (*control.Attr, error) {
	if name == "hang" {
		m.mu.Lock()
		m.looking++
		m.mu.Unlock()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unseen[name] {
		delete(m.unseen, name)
		return nil, fail(dataplane.NotFound)
	}
	if k, ok := strings.CutPrefix(name, "kind-"); ok { // a way to see what the kernel makes of it
		for kind := dataplane.Kind(1); kind.Valid(); kind++ {
			if strings.ReplaceAll(kind.String(), " ", "-") == k {
				return nil, fail(kind)
			}
		}
	}
	n, err := m.child(parent, name)
	if err != nil {
		return nil, err
	}
	return n.copyAttr(), nil
}

func (m *memory) GetAttr(_ context.Context, id dataplane.FileID) (*control.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[id]
	if n == nil {
		return nil, fail(dataplane.NotFound)
	}
	return n.copyAttr(), nil
}

func (m *memory) SetAttr(_ context.Context, r *control.SetAttrReq) (*control.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[r.File]
	if n == nil {
		return nil, fail(dataplane.NotFound)
	}
	a := &n.attr
	for _, s := range []struct {
		mask uint32
		do   func()
	}{
		{control.SetMode, func() { a.Mode = r.Mode }}, {control.SetUID, func() { a.UID = r.UID }},
		{control.SetGID, func() { a.GID = r.GID }},
		{control.SetATime, func() { a.ATimeNs = r.ATimeNs }},
		{control.SetMTime, func() { a.MTimeNs = r.MTimeNs }},
	} {
		if r.Mask&s.mask != 0 {
			s.do()
		}
	}
	a.CTimeNs = time.Now().UnixNano()
	return n.copyAttr(), nil
}

func (m *memory) Create(_ context.Context, r *control.CreateReq) (*control.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(r.Parent)
	if err != nil {
		return nil, err
	}
	if id, ok := d.entries[r.Name]; ok {
		if r.Exclusive {
			return nil, fail(dataplane.Exists)
		}
		return m.nodes[id].copyAttr(), nil
	}
	m.last++
	now := time.Now().UnixNano()
	n := &memNode{parent: r.Parent, attr: control.Attr{File: m.last, Type: r.Type, Mode: r.Mode,
		UID: r.UID, GID: r.GID, Target: r.Target, Links: 1, ATimeNs: now, MTimeNs: now,
		CTimeNs: now}}
	if r.Type == control.TypeDir {
		n.entries = map[string]dataplane.FileID{}
	}
	m.nodes[m.last], d.entries[r.Name] = n, m.last
	return n.copyAttr(), nil
}

func (m *memory) Unlink(_ context.Context, parent dataplane.FileID, name string, dir bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.child(parent, name)
	switch {
	case err != nil:
		return err
	case dir && n.entries == nil:
		return fail(dataplane.NotDir)
	case !dir && n.entries != nil:
		return fail(dataplane.IsDir)
	case len(n.entries) > 0:
		return fail(dataplane.NotEmpty)
	}
	delete(m.nodes[parent].entries, name)
	delete(m.nodes, n.attr.File) // also if it is open: that is what a cluster does
	return nil
}

func (m *memory) Rename(_ context.Context, r *control.RenameReq) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.child(r.FromParent, r.FromName)
	if err != nil {
		return err
	}
	to, err := m.dir(r.ToParent)
	if err != nil {
		return err
	}
	if old, ok := to.entries[r.ToName]; ok {
		if r.NoReplace {
			return fail(dataplane.Exists)
		}
		if len(m.nodes[old].entries) > 0 {
			return fail(dataplane.NotEmpty)
		}
		switch {
		case old == n.attr.File:
		case r.Keep != "" && old == r.Kept:
			m.nodes[dataplane.RootID].entries[r.Keep] = old
		default:
			delete(m.nodes, old)
		}
	}
	delete(m.nodes[r.FromParent].entries, r.FromName)
	to.entries[r.ToName] = n.attr.File
	return nil
}

func (m *memory) ReadDir(_ context.Context, id dataplane.FileID, after string,
	limit int) (*control.ReadDirReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(id)
	if err != nil {
		return nil, err
	}
	r := &control.ReadDirReply{}
	for name, id := range d.entries {
		if name > after {
			r.Entries = append(r.Entries, control.DirEntry{Name: name, Attr: *m.nodes[id].copyAttr()})
		}
	}
	slices.SortFunc(r.Entries, func(a, b control.DirEntry) int { return cmp.Compare(a.Name, b.Name) })
	if len(r.Entries) > limit {
		r.Entries, r.More = r.Entries[:limit], true
	}
	return r, nil
}

func (m *memory) StatFS(context.Context) (*control.StatFSReply, error) {
	return &control.StatFSReply{Total: 1 << 40, Free: 1 << 39, Files: 77}, nil
}

// What a test can ask the server.
const (
	hungAttribute    = "user.hung"    // how many operations hang, and lookups did
	mallocsAttribute = "user.mallocs" // how much was allocated so far
	stopAttribute    = "user.stop"    // end the loop
	appendAttribute  = "user.append"  // set: append the value, as another host does
	durableAttribute = "user.durable" // how many writes had to be durable, and flushes there were
	// Set: another host replaces the file by a rename of one with the value in it.
	replaceAttribute = "user.replace"
	// Set: another host makes a file in the directory, called as the value, which is of root's and
	// for nobody else; just after the name was looked up.
	makeAttribute = "user.make"
)

func (m *memory) GetXattr(_ context.Context, id dataplane.FileID, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch name {
	case hungAttribute:
		return []byte(strconv.Itoa(len(m.hung) + m.looking)), nil
	case mallocsAttribute:
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return []byte(strconv.FormatUint(s.Mallocs, 10)), nil
	case durableAttribute:
		return []byte(strconv.Itoa(m.durable)), nil
	case stopAttribute:
		m.loop.Stop()
	}
	v, ok := m.nodes[id].xattrs[name]
	if !ok {
		return nil, fail(dataplane.NoAttribute)
	}
	return v, nil
}

func (m *memory) SetXattr(_ context.Context, id dataplane.FileID, name string, value []byte,
	flags uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[id]
	_, ok := n.xattrs[name]
	if name == appendAttribute {
		n.write(int64(n.attr.Size), value)
		return nil
	}
	if name == replaceAttribute || name == makeAttribute {
		m.byAnother(n, name == makeAttribute, value)
		return nil
	}
	switch {
	case flags == 1 && ok:
		return fail(dataplane.Exists)
	case flags == 2 && !ok:
		return fail(dataplane.NoAttribute)
	}
	if n.xattrs == nil {
		n.xattrs = map[string][]byte{}
	}
	n.xattrs[name] = slices.Clone(value) // the caller's memory is for one call
	return nil
}

// byAnother makes a file in a directory, or instead of a file.
func (m *memory) byAnother(n *memNode, create bool, value []byte) {
	m.last++
	next := &memNode{attr: control.Attr{File: m.last, Type: control.TypeFile, Mode: 0600, Links: 1}}
	m.nodes[m.last] = next
	if create {
		next.parent, n.entries[string(value)] = n.attr.File, m.last
		m.unseen = map[string]bool{string(value): true}
		return
	}
	next.parent = n.parent
	next.write(0, value)
	for name, id := range m.nodes[n.parent].entries {
		if id == n.attr.File {
			m.nodes[n.parent].entries[name] = m.last
		}
	}
	delete(m.nodes, n.attr.File)
}

func (m *memory) RemoveXattr(_ context.Context, id dataplane.FileID, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.nodes[id].xattrs[name]; !ok {
		return fail(dataplane.NoAttribute)
	}
	delete(m.nodes[id].xattrs, name)
	if name == "user.hang" { // what hung goes on
		for op := range m.hung {
			go m.Start(op)
		}
		clear(m.hung)
	}
	return nil
}

func (m *memory) ListXattr(_ context.Context, id dataplane.FileID) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []byte
	for name := range m.nodes[id].xattrs {
		out = append(append(out, name...), 0)
	}
	return out, nil
}

func (m *memory) OpenAttr(a *control.Attr) (*client.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[a.File]
	if n == nil {
		return nil, fail(dataplane.NotFound)
	}
	f := new(client.File) // only its address counts
	m.opened[f] = n
	n.opens++
	return f, nil
}

func (m *memory) CloseFile(f *client.File) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opened[f].opens--
	delete(m.opened, f)
	return nil
}

func (m *memory) Truncate(_ context.Context, f *client.File, _ client.Right,
	size uint64) (*control.Attr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.opened[f]
	if size < n.attr.Size {
		n.zero(int64(size), int64(n.attr.Size-size))
	}
	n.attr.Size = size
	return n.copyAttr(), nil
}

func (m *memory) Grow(_ context.Context, f *client.File, size uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := &m.opened[f].attr
	a.Size = max(a.Size, size)
	return nil
}

func (m *memory) Seek(_ context.Context, f *client.File, off int64, hole bool) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.opened[f]
	for at := off; at < int64(n.attr.Size); at = (at/memBlock + 1) * memBlock {
		if _, data := n.blocks[at/memBlock]; data != hole {
			return at, nil
		}
	}
	if hole && off < int64(n.attr.Size) {
		return int64(n.attr.Size), nil
	}
	return 0, fail(dataplane.NotFound)
}

func (n *memNode) zero(off, length int64) {
	for length > 0 {
		k := min(length, memBlock-off%memBlock)
		if b := n.blocks[off/memBlock]; b != nil {
			clear(b[off%memBlock:][:k])
			if k == memBlock {
				delete(n.blocks, off/memBlock)
			}
		}
		off, length = off+k, length-k
	}
}

func (n *memNode) write(off int64, p []byte) {
	n.attr.Size = max(n.attr.Size, uint64(off)+uint64(len(p)))
	n.each(off, p, func(mem *[]byte, from int64, p []byte) {
		if *mem == nil {
			*mem = make([]byte, memBlock)
		}
		copy((*mem)[from:], p)
	})
}

// each calls fn with the pieces of memory behind [off, off+len(p)) and of p.
func (n *memNode) each(off int64, p []byte, fn func(mem *[]byte, from int64, piece []byte)) {
	if n.blocks == nil {
		n.blocks = map[int64][]byte{}
	}
	for len(p) > 0 {
		from := off % memBlock
		k := min(int64(len(p)), memBlock-from)
		b := n.blocks[off/memBlock]
		fn(&b, from, p[:k])
		if b != nil {
			n.blocks[off/memBlock] = b
		}
		off, p = off+k, p[k:]
	}
}

func (m *memory) Do(op *client.Op) { go m.Start(op) }

func (m *memory) Start(op *client.Op) {
	if m.do(op) {
		m.loop.Post(func() { op.Done(op) })
	}
}

func (m *memory) do(op *client.Op) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.opened[op.File]
	op.N, op.Err = 0, nil
	if _, ok := n.xattrs["user.hang"]; ok {
		m.hung[op] = true
		return false
	}
	for name, kind := range map[string]dataplane.Kind{"user.eio": dataplane.IOError,
		"user.gone": dataplane.NotFound, "user.busy": dataplane.LeaseHeld} {
		if _, ok := n.xattrs[name]; ok {
			op.Err = fail(kind)
			return true
		}
	}
	if op.FUA || op.Kind == client.Flush {
		m.durable++
	}
	switch op.Kind {
	case client.Read:
		end := min(int64(n.attr.Size), op.Offset+int64(len(op.Buf)))
		op.N = int(max(0, end-op.Offset))
		n.each(op.Offset, op.Buf[:op.N], func(mem *[]byte, from int64, p []byte) {
			clear(p)
			if *mem != nil {
				copy(p, (*mem)[from:])
			}
		})
	case client.Write:
		if op.Append {
			op.Offset = max(op.Offset, int64(n.attr.Size))
		}
		op.N = len(op.Buf)
		n.write(op.Offset, op.Buf)
	case client.Zero:
		n.zero(op.Offset, op.Length)
	}
	return true
}

func (m *memory) Cancel(op *client.Op) { m.Stop(op) }

func (m *memory) Stop(op *client.Op) {
	m.mu.Lock()
	hung := m.hung[op]
	delete(m.hung, op)
	m.mu.Unlock()
	if hung {
		op.Err = fail(dataplane.Closed)
		m.loop.Post(func() { op.Done(op) })
	}
}

func (m *memory) Loop() *uring.Loop     { return m.loop }
func (m *memory) Gone() <-chan struct{} { return m.loop.Done() }
func (m *memory) ID() uint64            { return 0xabc }
