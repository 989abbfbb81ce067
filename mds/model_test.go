package mds

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

var seedFlag = flag.Uint64("seed", 0, "seed of random tests, 0: by the clock")

// testRand returns a generator whose seed is printed when the test fails.
func testRand(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d: run again with -seed=%d", seed, seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 1))
}

// do applies one command to a state, through the encoding.
func do(t testing.TB, s *State, nowNs int64, c command) Result {
	t.Helper()
	res, err := s.Apply(encodeEntry(nowNs, c))
	if err != nil {
		t.Fatalf("apply %T: %v", c, err)
	}
	return res[0]
}

// modelNode is a file in the naive model of the namespace.
type modelNode struct {
	typ      control.FileType
	size     uint64
	children map[string]*modelNode
	xattrs   map[string]string
	chunks   map[uint32]bool
}

func newModelNode(typ control.FileType) *modelNode {
	return &modelNode{typ: typ, children: map[string]*modelNode{}, xattrs: map[string]string{},
		chunks: map[uint32]bool{}}
}

func (m *modelNode) contains(n *modelNode) bool {
	if m == n {
		return true
	}
	for _, c := range m.children {
		if c.contains(n) {
			return true
		}
	}
	return false
}

// nsTest drives a State and the model by the same random operations.
type nsTest struct {
	t     *testing.T
	rng   *rand.Rand
	s     *State
	root  *modelNode
	ids   map[*modelNode]dataplane.FileID
	nodes []*modelNode // that were ever made, some of them gone
	nowNs int64
	req   uint64
}

func newNSTest(t *testing.T, s *State, rng *rand.Rand) *nsTest {
	root := newModelNode(control.TypeDir)
	n := &nsTest{t: t, rng: rng, s: s, root: root, nodes: []*modelNode{root},
		ids: map[*modelNode]dataplane.FileID{root: dataplane.RootID}}
	for i := range byte(4) {
		r := do(t, s, 1, &cmdRegisterCS{Instance: 1, CS: CS{Disk: [16]byte{i + 1}, Boot: 1,
			Addr: "127.0.0.1:1", Host: fmt.Sprint("h", i), Capacity: 1 << 40}})
		if r.Kind != dataplane.OK {
			t.Fatal(r.Msg)
		}
	}
	return n
}

func (n *nsTest) pick() *modelNode { return n.nodes[n.rng.IntN(len(n.nodes))] }
func (n *nsTest) name() string     { return string(rune('a' + n.rng.IntN(6))) }

// gone says whether a node isn't in the tree any more.
func (n *nsTest) gone(m *modelNode) bool { return !n.root.contains(m) }

// dirErr is what any operation in directory m must answer if m is no directory.
func (n *nsTest) dirErr(m *modelNode) dataplane.Kind {
	switch {
	case n.gone(m):
		return dataplane.NotFound
	case m.typ != control.TypeDir:
		return dataplane.NotDir
	}
	return dataplane.OK
}

func (n *nsTest) step() {
	n.nowNs += 1000
	n.req++
	var c command
	var want dataplane.Kind
	switch k := n.rng.IntN(20); {
	case k < 7:
		c, want = n.create()
	case k < 10:
		c, want = n.unlink()
	case k < 14:
		c, want = n.rename()
	case k < 16:
		c, want = n.resize()
	case k < 18:
		c, want = n.allocate()
	default:
		c, want = n.xattr()
	}
	got := do(n.t, n.s, n.nowNs, c)
	if got.Kind != want {
		n.t.Fatalf("%T %+v: %v %s, want %v", c, c, got.Kind, got.Msg, want)
	}
	if cr, ok := c.(*cmdCreate); ok && want == dataplane.OK {
		for m, id := range n.ids {
			if id == cr.Parent && m.children[cr.Name] != nil {
				n.ids[m.children[cr.Name]] = got.Attr.File
			}
		}
	}
	// The same request again has the same answer and does nothing.
	if c.from().Peer != 0 && n.rng.IntN(4) == 0 {
		if again := do(n.t, n.s, n.nowNs, c); again.Kind != got.Kind || len(again.Freed) > 0 {
			n.t.Fatalf("%T again: %v, was %v", c, again.Kind, got.Kind)
		}
	}
}

func (n *nsTest) origin() origin { return origin{7, n.req} }

func (n *nsTest) create() (command, dataplane.Kind) {
	dir, name := n.pick(), n.name()
	typ := control.FileType(1 + n.rng.IntN(2))
	excl := n.rng.IntN(2) == 0
	c := &cmdCreate{n.origin(), control.CreateReq{Parent: n.ids[dir], Name: name, Type: typ,
		Mode: 0o644, Exclusive: excl}}
	if k := n.dirErr(dir); k != dataplane.OK {
		return c, k
	}
	old := dir.children[name]
	switch {
	case old == nil:
		m := newModelNode(typ)
		dir.children[name] = m
		n.nodes = append(n.nodes, m)
		return c, dataplane.OK
	case !excl && old.typ == typ:
		return c, dataplane.OK
	case !excl && old.typ == control.TypeDir:
		return c, dataplane.IsDir
	}
	return c, dataplane.Exists
}

func (n *nsTest) unlink() (command, dataplane.Kind) {
	dir, name, rmdir := n.pick(), n.name(), n.rng.IntN(2) == 0
	c := &cmdUnlink{n.origin(), control.UnlinkReq{Parent: n.ids[dir], Name: name, Dir: rmdir}}
	if k := n.dirErr(dir); k != dataplane.OK {
		return c, k
	}
	old := dir.children[name]
	switch {
	case old == nil:
		return c, dataplane.NotFound
	case rmdir && old.typ != control.TypeDir:
		return c, dataplane.NotDir
	case !rmdir && old.typ == control.TypeDir:
		return c, dataplane.IsDir
	case len(old.children) > 0:
		return c, dataplane.NotEmpty
	}
	delete(dir.children, name)
	return c, dataplane.OK
}

func (n *nsTest) rename() (command, dataplane.Kind) {
	from, to, a, b := n.pick(), n.pick(), n.name(), n.name()
	noReplace := n.rng.IntN(4) == 0
	c := &cmdRename{n.origin(), control.RenameReq{FromParent: n.ids[from], FromName: a,
		ToParent: n.ids[to], ToName: b, NoReplace: noReplace}}
	if k := n.dirErr(from); k != dataplane.OK {
		return c, k
	}
	if k := n.dirErr(to); k != dataplane.OK {
		return c, k
	}
	m, old := from.children[a], to.children[b]
	keep := n.rng.IntN(3) > 0
	if keep {
		c.Keep, c.Kept = n.name()+n.name(), n.ids[n.pick()]
		if old != nil && n.rng.IntN(4) > 0 {
			c.Kept = n.ids[old]
		}
		keep = old != nil && old.typ != control.TypeDir && c.Kept == n.ids[old]
	}
	switch {
	case m == nil:
		return c, dataplane.NotFound
	case old != nil && noReplace:
		return c, dataplane.Exists
	case old == m:
		return c, dataplane.OK
	case m.contains(to):
		return c, dataplane.Invalid
	case old != nil && m.typ == control.TypeDir && old.typ != control.TypeDir:
		return c, dataplane.NotDir
	case old != nil && m.typ != control.TypeDir && old.typ == control.TypeDir:
		return c, dataplane.IsDir
	case old != nil && len(old.children) > 0:
		return c, dataplane.NotEmpty
	case keep && n.root.children[c.Keep] != nil:
		return c, dataplane.Exists
	}
	delete(from.children, a)
	to.children[b] = m
	if keep {
		n.root.children[c.Keep] = old
	}
	return c, dataplane.OK
}

func (n *nsTest) resize() (command, dataplane.Kind) {
	m := n.pick()
	size := n.rng.Uint64N(6 * dataplane.ChunkSize)
	if n.rng.IntN(2) == 0 {
		c := &cmdGrow{GrowReq: control.GrowReq{File: n.ids[m], Size: size}}
		if k := n.fileErr(m); k != dataplane.OK {
			return c, k
		}
		m.size = max(m.size, size)
		return c, dataplane.OK
	}
	c := &cmdSetAttr{n.origin(), control.SetAttrReq{File: n.ids[m], Mask: control.SetSize,
		Size: size}}
	if k := n.fileErr(m); k != dataplane.OK {
		return c, k
	}
	m.size = size
	for i := range m.chunks {
		if uint64(i)*dataplane.ChunkSize >= size {
			delete(m.chunks, i)
		}
	}
	return c, dataplane.OK
}

func (n *nsTest) fileErr(m *modelNode) dataplane.Kind {
	switch {
	case n.gone(m):
		return dataplane.NotFound
	case m.typ == control.TypeDir:
		return dataplane.IsDir
	}
	return dataplane.OK
}

func (n *nsTest) allocate() (command, dataplane.Kind) {
	m := n.pick()
	c := &cmdAllocate{File: n.ids[m]}
	for range 1 + n.rng.IntN(3) {
		p := placed{index: n.rng.Uint32N(6), n: 3}
		for i, cs := range n.rng.Perm(4)[:3] {
			p.members[i] = dataplane.CSID(cs + 1)
		}
		c.Chunks = append(c.Chunks, p)
	}
	switch {
	case n.gone(m):
		return c, dataplane.NotFound
	case m.typ == control.TypeDir:
		return c, dataplane.Invalid
	}
	for _, p := range c.Chunks {
		m.chunks[p.index] = true
	}
	return c, dataplane.OK
}

func (n *nsTest) xattr() (command, dataplane.Kind) {
	m, name := n.pick(), n.name()
	value := strings.Repeat(n.name(), n.rng.IntN(5))
	remove, flags := n.rng.IntN(3) == 0, uint32(n.rng.IntN(3))
	c := &cmdSetXattr{n.origin(), control.XattrReq{File: n.ids[m], Name: name,
		Value: []byte(value), Remove: remove, Flags: flags}}
	_, found := m.xattrs[name]
	switch {
	case n.gone(m):
		return c, dataplane.NotFound
	case remove && !found, !remove && !found && flags == xattrReplace:
		return c, dataplane.NoAttribute
	case remove:
		delete(m.xattrs, name)
	case found && flags == xattrCreate:
		return c, dataplane.Exists
	default:
		m.xattrs[name] = value
	}
	return c, dataplane.OK
}

// flatten lists a tree as text, one line per file, in the order of paths.
func (m *modelNode) flatten(path string, out *[]string) {
	chunks, xattrs := []string{}, []string{}
	for i := range m.chunks {
		chunks = append(chunks, fmt.Sprint(i))
	}
	for k, v := range m.xattrs {
		xattrs = append(xattrs, k+"="+v)
	}
	sort.Strings(chunks)
	sort.Strings(xattrs)
	*out = append(*out, fmt.Sprintf("%s type %d size %d chunks %v xattrs %v", path, m.typ, m.size,
		chunks, xattrs))
	names := []string{}
	for name := range m.children {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		m.children[name].flatten(path+"/"+name, out)
	}
}

// flattenState is flatten of a State.
func flattenState(s *State, f *file, path string, out *[]string) {
	m := newModelNode(f.typ)
	m.size = f.size
	if f.typ == control.TypeDir {
		m.size = 0
	}
	f.slots.descend(0, func(i, v uint32) bool { m.chunks[i] = true; return true })
	if int(f.chunks) != len(m.chunks) {
		*out = append(*out, fmt.Sprintf("%s: %d chunks counted", path, f.chunks))
	}
	for _, x := range f.xattrs {
		m.xattrs[x.name] = string(x.value)
	}
	m.flatten(path, out)
	if f.dir == nil {
		return
	}
	subdirs := uint32(0)
	f.dir.after("", func(e *dirEntry) bool {
		c := s.files.get(e.id)
		if c.typ == control.TypeDir {
			subdirs++
		}
		if c.parent != f.id || c.name != e.name {
			*out = append(*out, fmt.Sprintf("%s/%s knows another place", path, e.name))
		}
		flattenState(s, c, path+"/"+e.name, out)
		return true
	})
	if subdirs != f.subdirs {
		*out = append(*out, fmt.Sprintf("%s: %d subdirs counted", path, f.subdirs))
	}
}

// diffLines says where two lists begin to differ, or "".
func diffLines(want, got []string) string {
	for i := range max(len(want), len(got)) {
		w, g := "nothing", "nothing"
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			return fmt.Sprintf("line %d: want %s, got %s", i, w, g)
		}
	}
	return ""
}

func (n *nsTest) compare() {
	n.t.Helper()
	var got, want []string
	n.root.flatten("", &want)
	flattenState(n.s, n.s.files.get(dataplane.RootID), "", &got)
	if d := diffLines(want, got); d != "" {
		n.t.Fatalf("the state differs from the model: %s", d)
	}
	checkState(n.t, n.s)
}

// checkState checks what always holds between the parts of a state.
func checkState(t testing.TB, s *State) {
	t.Helper()
	chunks := uint64(0)
	load := make([]uint32, len(s.csLoad))
	for slot := range s.table.Slots() {
		rec := s.table.At(slot)
		if r := s.table.at(slot); !r.intact() {
			t.Fatalf("checksum of record %d", slot)
		}
		if rec == nil {
			continue
		}
		chunks++
		f := s.files.get(rec.File)
		if f == nil || uint64(f.slots.get(rec.Index)) != slot+1 {
			t.Fatalf("record %v and its file disagree", rec.ID)
		}
		for _, m := range rec.members() {
			load[m.CS]++
		}
	}
	if chunks != s.table.Len() || !slices.Equal(load, s.csLoad) {
		t.Fatalf("%d chunks, %d counted; load %v, counted %v", chunks, s.table.Len(), load,
			s.csLoad)
	}
	below := map[dataplane.FileID]usage{}
	for id := range s.files.byID {
		f := s.files.get(id)
		for dir := f.parent; dir != 0; dir = s.files.get(dir).parent {
			u := below[dir]
			u.add(f.own())
			below[dir] = u
		}
	}
	for id := range s.files.byID {
		if f := s.files.get(id); f.typ == control.TypeDir && f.dir.below != below[id] {
			t.Fatalf("below directory %d are %+v, counted %+v", id, below[id], f.dir.below)
		}
	}
	if s.table.used+s.table.free != s.table.slots {
		t.Fatalf("used %d, free %d, slots %d", s.table.used, s.table.free, s.table.slots)
	}
}

// dump is the state as a snapshot.
func dump(t testing.TB, s *State) []byte {
	t.Helper()
	sn, err := s.Capture()
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Release()
	var b bytes.Buffer
	if err := sn.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestNamespaceModel compares the namespace with maps of maps under random operations, and after
// a round trip through a snapshot.
func TestNamespaceModel(t *testing.T) {
	rng := testRand(t)
	for range 20 {
		s := NewState()
		n := newNSTest(t, s, rng)
		for i := range 400 {
			n.step()
			if i%50 == 49 {
				n.compare()
			}
		}
		restored, err := Restore(bytes.NewReader(dump(t, s)))
		if err != nil {
			t.Fatal(err)
		}
		n.s = restored
		n.compare()
		// The restored state goes on exactly as the first: same ids, same free list.
		for range 100 {
			c, _ := n.allocate()
			n.req++
			a, b := do(t, s, n.nowNs, c), do(t, restored, n.nowNs, c)
			if !reflect.DeepEqual(a, b) {
				t.Fatalf("the restored state differs: %+v, %+v", a, b)
			}
			c2, _ := n.unlink()
			n.req++
			do(t, s, n.nowNs, c2)
			do(t, restored, n.nowNs, c2)
		}
		var a, b []string
		flattenState(s, s.files.get(dataplane.RootID), "", &a)
		flattenState(restored, restored.files.get(dataplane.RootID), "", &b)
		if d := diffLines(a, b); d != "" {
			t.Fatal(d)
		}
		if s.table.freeHead != restored.table.freeHead {
			t.Fatal("free lists differ")
		}
		s.Close()
		restored.Close()
	}
}
