package chunk

import (
	"bytes"
	"path/filepath"
	"testing"

	"pstorage/dataplane"
)

// FuzzStamp: what is taken for a stamp is written the same again, byte by byte.
func FuzzStamp(f *testing.F) {
	var b [dataplane.BlockSize]byte
	(&stamp{nr: 7, batch: 1 << 40, boot: 3}).put(b[:])
	f.Add(b[:stampSize])
	f.Add(make([]byte, stampSize))
	f.Add(b[:100])
	f.Fuzz(func(t *testing.T, in []byte) {
		var s stamp
		if s.decode(in) != nil {
			if s != (stamp{}) {
				t.Errorf("a refused stamp left %+v", s)
			}
			return
		}
		var out [dataplane.BlockSize]byte
		s.put(out[:])
		var again stamp
		if err := again.decode(out[:stampSize]); err != nil || again != s {
			t.Errorf("%+v was read back as %+v, %v", s, again, err)
		}
	})
}

// TestStampDamage: each byte of a stamp that counts is protected.
func TestStampDamage(t *testing.T) {
	var b [dataplane.BlockSize]byte
	(&stamp{nr: 7, batch: 9, boot: 3}).put(b[:])
	for i := range stampSize {
		b[i] ^= 0x40
		var s stamp
		if s.decode(b[:]) == nil {
			t.Errorf("byte %d may be anything", i)
		}
		b[i] ^= 0x40
	}
}

// FuzzDirty: what is taken for a dirty map is written the same again, and is never of the future.
func FuzzDirty(f *testing.F) {
	d := &dirtyMap{since: 3, mark: 1 << 33}
	d.set.touch(5<<20, 1<<20)
	f.Add(d.append(nil), uint32(4))
	f.Add(d.append(nil), uint32(2))
	f.Add([]byte{1, 2, 3}, uint32(1))
	f.Fuzz(func(t *testing.T, in []byte, epoch uint32) {
		d := decodeDirty(in, dataplane.Epoch(epoch))
		if d == nil {
			return
		}
		if d.since == 0 || d.since > dataplane.Epoch(epoch) {
			t.Errorf("since %d at epoch %d", d.since, epoch)
		}
		if out := d.append(nil); !bytes.Equal(out, in) {
			t.Errorf("%x was written back as %x", in, out)
		}
	})
}

// FuzzJournalNote: what is taken for a note names two different journals by absolute paths, and is
// written such that it is read back as it was.
func FuzzJournalNote(f *testing.F) {
	f.Add([]byte(`{"Old":"/a/cache","New":"/b/journal"}`+"\n"), true)
	f.Add([]byte(`{"Old":"/a","New":"/a"}`), true)
	f.Add([]byte(`{"Old":"a","New":"/b"}`), true)
	f.Add([]byte("{}"), false)
	f.Fuzz(func(t *testing.T, in []byte, whole bool) {
		if whole {
			in = append(bytes.Clone(in), identityTrailer(in)...)
		}
		n, err := decodeJournalNote(in)
		if err != nil {
			return
		}
		if !filepath.IsAbs(n.Old) || !filepath.IsAbs(n.New) || n.Old == n.New {
			t.Errorf("taken: %+v", n)
		}
		b, err := n.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeJournalNote(b)
		if err != nil && len(b) <= 1<<16 || err == nil && *again != *n {
			t.Errorf("%+v was read back as %+v, %v", n, again, err)
		}
	})
}
