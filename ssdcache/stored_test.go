package ssdcache

import (
	"bytes"
	"testing"
)

// A Stored record takes what the log has of its blocks out of the index, and replay gives its
// checksums to the owner in the order of the log.
func TestStored(t *testing.T) {
	r := openRig(t, 61, 8)
	r.do(change{Data, 0, 5, 4})
	sums := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	a := &Append{Record: Record{Kind: Stored, Slot: 0, Chunk: 7, Seq: 9, Offset: 6 * blockSize,
		Length: 3 * blockSize}, CRCs: sums}
	if err := r.wait(func(done func(error)) {
		a.Done = func(a *Append) { done(a.Err) }
		r.log.Append(a)
	}); err != nil {
		t.Fatal(err)
	}
	indexed := func() {
		t.Helper()
		for b, want := range map[uint32]bool{5: true, 6: false, 7: false, 8: false} {
			if _, ok := r.log.Lookup(0, b); ok != want {
				t.Errorf("block %d is in the log: %v", b, ok)
			}
		}
	}
	indexed()
	r.powerCut()
	var kinds []RecordKind
	o := r.opt
	o.MaxSlots, o.Disk, o.Env, o.Pool, o.Owner, o.Backing = testSlots, r.dev, r.env, r.pool, testOwner,
		r.store
	if err := r.wait(func(done func(error)) {
		Open(o, func(rec *Record) {
			kinds = append(kinds, rec.Kind)
			if rec.Kind == Stored && (!bytes.Equal(rec.Sums, sums) || rec.Seq != 9 ||
				rec.Offset != 6*blockSize || rec.Length != 3*blockSize) {
				t.Errorf("replay gave %+v", rec)
			}
		}, func(l *Log, err error) {
			r.log, r.store.log = l, l
			done(err)
		})
	}); err != nil {
		t.Fatal(err)
	}
	if len(kinds) != 2 || kinds[0] != Data || kinds[1] != Stored {
		t.Errorf("replay gave kinds %v", kinds)
	}
	indexed()
}

// A log of only Stored records is checkpointed now and then, so that replay stays short.
func TestStoredBound(t *testing.T) {
	r := openRig(t, 62, 64)
	rounds := r.log.stats.Rounds
	for i := 0; i < maxStored+4096; i += 4096 {
		left := 4096
		if err := r.wait(func(done func(error)) {
			for range 4096 {
				r.log.Append(&Append{Record: Record{Kind: Stored, Length: blockSize}, CRCs: make([]byte, 4),
					Done: func(a *Append) {
						if left--; left == 0 {
							done(a.Err)
						}
					}})
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if r.log.stats.Rounds == rounds {
		t.Errorf("no checkpoint after %d records", maxStored+4096)
	}
}

// Batches of older versions are read, those of newer ones aren't.
func TestBatchVersions(t *testing.T) {
	for v := range uint16(version + 2) {
		_, b := sampleHeader()
		le.PutUint16(b[8:], v)
		le.PutUint32(b[headCRCAt:], headerCRC(b))
		var h header
		if err := h.decode(b); (err == nil) != (v > 0 && v <= version) {
			t.Errorf("version %d: %v", v, err)
		}
	}
}
