package mds

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestRecordLayout compares the memory of a record with the byte table.
func TestRecordLayout(t *testing.T) {
	r := Record{ID: 0x0102030405060708, File: 0x1112131415161718, Index: 0x21222324,
		Epoch: 0x31323334, State: 0x41, Flags: 0x42, Wanted: 0x43, Minimum: 0x44, Present: 2,
		Tier: 0x46, Domain: 0x47, Ack: 0x48, Clone: 0x5152535455565758,
		ChangedNs: 0x6162636465666768}
	r.setMembers([]dataplane.CSID{0x71727374, 0x81828384})
	r.seal()
	le := binary.LittleEndian
	want := make([]byte, RecordSize)
	le.PutUint64(want[0:], uint64(r.ID))
	le.PutUint64(want[8:], uint64(r.File))
	le.PutUint32(want[16:], r.Index)
	le.PutUint32(want[20:], uint32(r.Epoch))
	copy(want[24:], []byte{0x41, 0x42, 0x43, 0x44, 2, 0x46, 0x47, 0x48})
	le.PutUint32(want[32:], 0x71727374)
	want[36], want[37] = replicaValid, 0
	le.PutUint32(want[40:], 0x81828384)
	want[44], want[45] = replicaValid, 1
	le.PutUint64(want[96:], r.Clone)
	le.PutUint64(want[104:], uint64(r.ChangedNs))
	le.PutUint32(want[124:], dataplane.CRC(want[:124]))
	if !bytes.Equal(want, r.bytes()) {
		t.Errorf("record in memory:\n%x\nwant\n%x", r.bytes(), want)
	}
	for i := range RecordSize {
		bad := r
		bad.bytes()[i] ^= 4
		if bad.intact() {
			t.Errorf("damage in byte %d goes unseen", i)
		}
	}
	if !(&Record{}).intact() {
		t.Error("an unused record isn't intact")
	}
}

func TestRecordValid(t *testing.T) {
	good := Record{ID: dataplane.NewChunkID(3, 7), File: 2, Epoch: 1, State: stateUsed}
	good.setMembers([]dataplane.CSID{1, 2})
	for name, tc := range map[string]struct {
		change func(r *Record)
		want   bool
	}{
		"good":           {func(r *Record) {}, true},
		"free":           {func(r *Record) { *r = Record{ID: r.ID} }, true},
		"unused":         {func(r *Record) { *r = Record{} }, true},
		"other slot":     {func(r *Record) { r.ID = dataplane.NewChunkID(3, 8) }, false},
		"no generation":  {func(r *Record) { r.ID = 7 }, false},
		"state":          {func(r *Record) { r.State = 2 }, false},
		"no file":        {func(r *Record) { r.File = 0 }, false},
		"no epoch":       {func(r *Record) { r.Epoch = 0 }, false},
		"no members":     {func(r *Record) { r.Present = 0 }, false},
		"9 members":      {func(r *Record) { r.Present = 9 }, false},
		"member 0":       {func(r *Record) { r.Present = 3 }, false},
		"index too high": {func(r *Record) { r.Index = MaxFileChunks }, false},
	} {
		r := good
		tc.change(&r)
		if got := r.valid(7); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestTable compares the table with a map under random operations, captures among them.
func TestTable(t *testing.T) {
	rng := testRand(t)
	table := NewTable()
	defer table.Close()
	model := map[dataplane.ChunkID]uint32{} // chunk -> index
	var gone []dataplane.ChunkID
	var capture *Capture
	var captured map[dataplane.ChunkID]uint32
	check := func() {
		got := map[dataplane.ChunkID]uint32{}
		for i := range capture.Pages() {
			p := capture.Page(i)
			for k := range p {
				if !p[k].intact() {
					t.Fatalf("record %d of the capture is damaged", i*recordsPerPage+k)
				}
				if p[k].State == stateUsed {
					got[p[k].ID] = p[k].Index
				}
			}
		}
		if !maps.Equal(got, captured) {
			t.Fatalf("the capture has %d chunks, had %d", len(got), len(captured))
		}
	}
	for step := range 30000 {
		ids := func() dataplane.ChunkID {
			for id := range model {
				return id
			}
			return 0
		}
		switch k := rng.IntN(100); {
		case k < 45 || len(model) == 0:
			r, err := table.Alloc()
			if err != nil {
				t.Fatal(err)
			}
			if _, twice := model[r.ID]; twice || slices.Contains(gone, r.ID) {
				t.Fatalf("id %v was given out twice", r.ID)
			}
			r.File, r.Epoch, r.Index = 1, 1, uint32(step)
			r.seal()
			model[r.ID] = r.Index
		case k < 70:
			r := table.Edit(ids())
			r.Index = uint32(step)
			r.seal()
			model[r.ID] = r.Index
		case k < 99:
			id := ids()
			table.Free(id)
			delete(model, id)
			if gone = append(gone, id); len(gone) > 100 {
				gone = gone[1:]
			}
		case capture == nil:
			capture, captured = table.Capture(), maps.Clone(model)
			if table.Capture() != nil {
				t.Fatal("two captures at once")
			}
		default:
			check()
			capture.Release()
			capture = nil
		}
	}
	for id, index := range model {
		if r := table.Lookup(id); r == nil || r.Index != index || !r.intact() {
			t.Fatalf("chunk %v: %+v", id, r)
		}
	}
	for _, id := range gone {
		if table.Lookup(id) != nil || table.Edit(id) != nil {
			t.Fatalf("freed chunk %v is still there", id)
		}
	}
	if table.Len() != uint64(len(model)) {
		t.Errorf("Len %d, want %d", table.Len(), len(model))
	}
	if table.Lookup(0) != nil || table.Lookup(dataplane.NewChunkID(1, 1<<39)) != nil {
		t.Error("found what never was")
	}
}

// TestTableWornSlot says that a slot whose generations are used up isn't given out again.
func TestTableWornSlot(t *testing.T) {
	table := NewTable()
	defer table.Close()
	r, _ := table.Alloc()
	*r = Record{ID: dataplane.NewChunkID(maxGeneration, 0), State: stateUsed}
	table.Free(r.ID)
	if r, _ = table.Alloc(); r.ID.Slot() != 1 {
		t.Errorf("slot %d was given out", r.ID.Slot())
	}
}

// TestTableCloseWithCapture says that a capture outlives its table.
func TestTableCloseWithCapture(t *testing.T) {
	table := NewTable()
	r, _ := table.Alloc()
	r.seal()
	c := table.Capture()
	table.Close()
	if c.Page(0)[0].State != stateUsed {
		t.Error("the capture lost its page")
	}
	c.Release()
	if table.arenas != nil {
		t.Error("memory wasn't unmapped")
	}
}

func TestLookupAllocs(t *testing.T) {
	s := NewState()
	defer s.Close()
	newNSTest(t, s, testRand(t))
	f := do(t, s, 1, &cmdCreate{CreateReq: createReq("f")})
	c := &cmdAllocate{File: f.Attr.File}
	for i := range uint32(1000) {
		c.Chunks = append(c.Chunks, placed{index: i, n: 2, members: members(1, 2)})
	}
	do(t, s, 1, c)
	id := s.table.At(500).ID // small numbers would cost nothing anyway
	n := testing.AllocsPerRun(1000, func() {
		if s.table.Lookup(id) == nil {
			t.Fatal("chunk not found")
		}
	})
	if n != 0 {
		t.Errorf("look-up of a chunk: %v allocations", n)
	}
	n = testing.AllocsPerRun(1000, func() {
		root := s.files.get(dataplane.RootID)
		file := s.files.get(root.dir.find("f"))
		if s.table.At(uint64(file.slots.get(700)-1)).Index != 700 {
			t.Fatal("wrong chunk")
		}
	})
	if n != 0 {
		t.Errorf("look-up of a name and its chunk: %v allocations", n)
	}
}

// TestBytesPerChunk holds the memory budget: 128 bytes of record, 4 of slot, little else.
func TestBytesPerChunk(t *testing.T) {
	s := NewState()
	defer s.Close()
	newNSTest(t, s, testRand(t))
	const files, each = 20, 5000
	for i := range files {
		f := do(t, s, 1, &cmdCreate{CreateReq: createReq(fmt.Sprint("f", i))})
		for from := uint32(0); from < each; from += 1000 {
			c := &cmdAllocate{File: f.Attr.File}
			for k := range uint32(1000) {
				c.Chunks = append(c.Chunks, placed{index: from + k, n: 3, members: members(1, 2, 3)})
			}
			do(t, s, 1, c)
		}
	}
	bytes := len(s.table.arenas)*pagesPerArena*pageSize + 4*cap(s.table.pages) +
		4*cap(s.table.spare) + 8*cap(s.table.shared)
	for i := range files {
		f := s.files.get(dataplane.FileID(2 + i))
		bytes += int(unsafe.Sizeof(*f)) + 24*cap(f.slots.pages)
		for _, p := range f.slots.pages {
			bytes += 4 * cap(p)
		}
	}
	// Arenas come in 2 MiB: at this size that is up to 21 bytes more per chunk.
	spare := len(s.table.spare) * pageSize
	if per := float64(bytes-spare) / (files * each); per > 140 {
		t.Errorf("%.1f bytes per chunk", per)
	}
}

func members(cs ...dataplane.CSID) (m [dataplane.MaxReplicas]dataplane.CSID) {
	copy(m[:], cs)
	return m
}

// TestNoMemory: a server that gets no memory for a chunk record doesn't go on without it, as those
// that had some would have a chunk that it hasn't got.
func TestNoMemory(t *testing.T) {
	s := NewState()
	defer s.Close()
	cs := do(t, s, 1, &cmdRegisterCS{CS: CS{Disk: [16]byte{1}, Boot: 1, Addr: "a:1"}}).CS
	f := do(t, s, 1, &cmdCreate{CreateReq: control.CreateReq{Parent: dataplane.RootID, Name: "f",
		Type: control.TypeFile}}).Attr.File
	mmap = func(int, int64, int, int, int) ([]byte, error) { return nil, unix.ENOMEM }
	defer func() {
		mmap = unix.Mmap
		if recover() == nil {
			t.Error("it went on")
		}
	}()
	p := placed{n: 1}
	p.members[0] = cs
	_, _ = s.Apply(encodeEntry(1, &cmdAllocate{File: f, Chunks: []placed{p}}))
}
