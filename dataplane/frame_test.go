package dataplane

import (
	"bytes"
	"errors"
	"testing"
)

func TestHeaderRoundTrip(t *testing.T) {
	in := Header{Op: OpWrite, Flags: FlagData | FlagFUA, Status: NotHead, ReqID: 1 << 60,
		Chunk: NewChunkID(7, 12345), Epoch: 9, Offset: 512, Length: 4096, Aux: 3, Seq: 1 << 50, Tag: 5}
	var b [HeaderSize]byte
	in.Put(b[:])
	var out Header
	if err := out.Decode(b[:]); err != nil || out != in {
		t.Fatalf("got %v %v, want %v", err, &out, &in)
	}
	if out.CRCBytes() != 8 || out.DataBytes() != 4096 {
		t.Fatalf("body sizes %d %d", out.CRCBytes(), out.DataBytes())
	}
	for i := range b {
		b[i] ^= 1
		if err := out.Decode(b[:]); err == nil {
			t.Fatalf("a flipped bit in byte %d was accepted", i)
		}
		b[i] ^= 1
	}
}

func TestHeaderBounds(t *testing.T) {
	for _, c := range []struct {
		name string
		h    Header
		want error
	}{
		{"last block", Header{Op: OpRead, Offset: ChunkSize - 1, Length: 1}, nil},
		{"past the end", Header{Op: OpRead, Offset: ChunkSize - 1, Length: 2}, errBounds},
		{"offset past", Header{Op: OpRead, Offset: ChunkSize + 1}, errBounds},
		{"overflow", Header{Op: OpRead, Offset: 4096, Length: 1<<32 - 1}, errBounds},
		{"part", Header{Op: OpWrite, Flags: FlagData, Length: PartSize}, nil},
		{"large part", Header{Op: OpWrite, Flags: FlagData, Length: PartSize + 1}, errPart},
		{"control", Header{Op: OpControlBase, Flags: FlagData, Length: MaxControlPayload}, nil},
		{"large control", Header{Op: OpControlBase, Length: MaxControlPayload + 1}, errControl},
		{"flags", Header{Op: OpRead, Flags: 1 << 15}, errFlags},
		{"status", Header{Op: OpRead, Status: kindEnd}, errStatus},
	} {
		var b [HeaderSize]byte
		c.h.Put(b[:])
		var h Header
		if err := h.Decode(b[:]); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestBlocksAndCRCs(t *testing.T) {
	for _, c := range []struct {
		off, n uint32
		want   int
	}{{0, 0, 0}, {0, 1, 1}, {0, 4096, 1}, {0, 4097, 2}, {4095, 2, 2}, {512, 4096, 2},
		{4096, 65536, 16}} {
		if got := Blocks(c.off, c.n); got != c.want {
			t.Errorf("Blocks(%d, %d) = %d, want %d", c.off, c.n, got, c.want)
		}
		p := bytes.Repeat([]byte{0xa5}, int(c.n))
		crcs := make([]byte, 4*c.want)
		if n := PutCRCs(crcs, c.off, p); n != len(crcs) {
			t.Errorf("PutCRCs wrote %d, want %d", n, len(crcs))
		}
		if i := CheckCRCs(crcs, c.off, p); i != -1 {
			t.Errorf("CheckCRCs(%d, %d): block %d", c.off, c.n, i)
		}
		if c.n > 0 {
			p[c.n-1] ^= 1
			if i := CheckCRCs(crcs, c.off, p); i != c.want-1 {
				t.Errorf("flip not found: %d", i)
			}
		}
	}
}

func TestKindsHaveNames(t *testing.T) {
	for k := OK; k < kindEnd; k++ {
		if kinds[k].name == "" {
			t.Errorf("kind %d has no row", k)
		}
	}
	if got := KindOf(E("x", NotFound, errors.New("y"))); got != NotFound {
		t.Error(got)
	}
}

func FuzzHeaderDecode(f *testing.F) {
	var b [HeaderSize]byte
	(&Header{Op: OpWrite, Flags: FlagData, Length: 4096}).Put(b[:])
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, p []byte) {
		var h Header
		if h.Decode(p) != nil {
			return
		}
		if h.CRCBytes() > 4*(MaxControlPayload/BlockSize) || h.DataBytes() > MaxControlPayload {
			t.Fatalf("unbounded body: %v", &h)
		}
		var again [HeaderSize]byte
		h.Put(again[:])
		if !bytes.Equal(again[:], p[:HeaderSize]) {
			t.Fatalf("not canonical: %v", &h)
		}
	})
}

func TestHeaderAllocs(t *testing.T) {
	var b [HeaderSize]byte
	h := Header{Op: OpRead, Length: 4096}
	if n := testing.AllocsPerRun(100, func() { h.Put(b[:]); _ = h.Decode(b[:]) }); n != 0 {
		t.Fatalf("%v allocations per header", n)
	}
}
