package ssdcache

import (
	"bytes"
	"reflect"
	"slices"
	"testing"

	"pstorage/dataplane"
)

func sampleHeader() (header, []byte) {
	h := header{headBlocks: 2, owner: 7, id: 8, seg: 9, nr: 10, durable: 8, inc: 3, prev: 4,
		pos: 5000, used: headSize}
	b := make([]byte, 2*blockSize)
	for _, r := range []Record{
		{Kind: Data, Slot: 3, Chunk: dataplane.NewChunkID(2, 1), Epoch: 4, Seq: 5, Commit: 4,
			Offset: 8192, Length: 12288},
		{Kind: Meta, Slot: 1, Chunk: 1, Meta: []byte("hello")},
		{Kind: Zero, Offset: 4096, Length: 1 << 20, Seq: 6},
		{Kind: Drop, Slot: 2},
		{Kind: Stored, Slot: 4, Offset: 4096, Length: 65536, Seq: 7},
	} {
		crcs := r.put(b[h.used:])
		for i := range crcs {
			crcs[i] = byte(i)
		}
		h.used += r.headerBytes()
		h.entries++
		h.dataBlocks += r.blocks()
	}
	h.put(b)
	return h, b
}

func TestHeaderRoundTrip(t *testing.T) {
	in, b := sampleHeader()
	var out header
	if err := out.decode(b); err != nil || out != in {
		t.Fatalf("got %v %+v, want %+v", err, out, in)
	}
	var kinds []RecordKind
	out.walk(b, func(r *Record, crcs []byte, data int) bool {
		kinds = append(kinds, r.Kind)
		switch {
		case r.Kind == Data && (len(crcs) != 12 || r.Length != 12288 || r.Seq != 5 || data != 0),
			r.Kind == Meta && (string(r.Meta) != "hello" || data != 3),
			r.Kind == Zero && (r.Offset != 4096 || r.Length != 1<<20),
			r.Kind == Stored && (len(crcs) != 64 || !bytes.Equal(r.Sums, crcs) || data != 3):
			t.Errorf("%+v", r)
		}
		return true
	})
	if !slices.Equal(kinds, []RecordKind{Data, Meta, Zero, Drop, Stored}) {
		t.Error(kinds)
	}
	for i := range b {
		b[i] ^= 0x10
		if out.decode(b) == nil {
			t.Fatalf("a flipped bit in byte %d was accepted", i)
		}
		b[i] ^= 0x10
	}
}

func TestSuperRoundTrip(t *testing.T) {
	in := super{segSize: 4 << 20, owner: 1, id: 2, segments: 10, inc: 3, gen: 4, tail: 5,
		tailBatch: 6, durable: 7, clean: true}
	b := make([]byte, superSize)
	in.put(b)
	var out super
	if err := out.decode(b); err != nil || out != in {
		t.Fatalf("%v %+v", err, out)
	}
	for i := range b {
		b[i] ^= 0x10
		if out.decode(b) == nil {
			t.Fatalf("a flipped bit in byte %d was accepted", i)
		}
		b[i] ^= 0x10
	}
}

func FuzzHeaderDecode(f *testing.F) {
	_, b := sampleHeader()
	f.Add(b, true)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if n := headerBlocks(b); fix && n > 0 && len(b) >= n*blockSize {
			b = append([]byte(nil), b...)
			le.PutUint32(b[headCRCAt:], headerCRC(b[:n*blockSize])) // look behind the checksum
		}
		var h header
		if h.decode(b) != nil {
			return
		}
		data := 0
		h.walk(b, func(r *Record, crcs []byte, at int) bool {
			if at != data || len(crcs) != 4*r.sums() || r.check() != "" {
				t.Fatalf("entry %+v at %d", r, at)
			}
			data += r.blocks()
			again := make([]byte, r.headerBytes())
			copy(r.put(again), crcs)
			var back Record
			if got, n, err := back.decode(again); err != nil || n != len(again) ||
				!bytes.Equal(got, crcs) || !reflect.DeepEqual(&back, r) {
				t.Fatalf("%+v became %+v, %d of %d bytes, %v", r, &back, n, len(again), err)
			}
			return true
		})
		if data != h.dataBlocks {
			t.Fatalf("%d data blocks, header says %d", data, h.dataBlocks)
		}
	})
}

func FuzzSuperDecode(f *testing.F) {
	b := make([]byte, superSize)
	(&super{segSize: 4 << 20, segments: 10, tail: 5, tailBatch: 6, durable: 7}).put(b)
	f.Add(b, true)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix && len(b) >= superSize {
			b = append([]byte(nil), b...)
			le.PutUint32(b[superSize-4:], dataplane.CRC(b[:superSize-4]))
		}
		var s super
		if s.decode(b) == nil && (s.segSize == 0 || s.segments < minSegments) {
			t.Fatalf("%+v", s)
		}
	})
}
