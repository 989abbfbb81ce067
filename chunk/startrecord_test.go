package chunk

import (
	"testing"
)

// TestStartRecord walks through lives of identity, store and log with starts that end anywhere, and
// puts back any combination of old copies: what is legal is accepted, what is old is not.
func TestStartRecord(t *testing.T) {
	type disks struct {
		boot, served uint64 // identity
		rec          startRecord
		stamp        uint64 // log
	}
	// begin starts once and ends after so many steps, 5: it served.
	begin := func(d disks, steps int) (disks, bool) {
		d.boot++
		if d.rec.checkIdentity(d.boot, d.served) != nil || d.rec.checkLog(d.stamp) != nil {
			return d, false
		}
		if steps > 1 {
			d.rec.begun = d.boot
		}
		if steps > 2 {
			d.stamp = d.boot
		}
		if steps > 3 {
			d.rec.served = d.boot
		}
		if steps > 4 {
			d.served = d.boot
		}
		return d, true
	}
	lives := []disks{{}}
	for range 5 { // all lives of up to five starts
		var next []disks
		for _, d := range lives {
			for steps := 1; steps <= 5; steps++ {
				n, ok := begin(d, steps)
				if !ok {
					t.Fatalf("%+v is refused", d)
				}
				next = append(next, n)
			}
		}
		lives = next
	}
	old, _ := begin(disks{}, 5)
	bad := 0
	for _, d := range lives {
		if d.rec.served == 0 {
			continue // nothing was ever served
		}
		for mask := 1; mask < 7; mask++ { // all three: the metadata servers' task
			now, was := d, old
			now.boot += old.boot
			now.rec.begun += old.boot
			now.stamp += old.boot
			now.rec.served += old.boot
			if now.served > 0 {
				now.served += old.boot
			}
			if mask&1 != 0 {
				now.boot, now.served = was.boot, was.served
			}
			if mask&2 != 0 {
				now.rec = was.rec
			}
			if mask&4 != 0 {
				now.stamp = was.stamp
			}
			if d.served == 0 && mask == 6 {
				continue // it didn't get as far as serving: nothing is missing
			}
			bad++
			if _, ok := begin(now, 5); ok {
				t.Fatalf("old copies %03b in a life %+v are accepted", mask, d)
			}
		}
	}
	if bad < 1000 {
		t.Errorf("only %d cases", bad)
	}
}

func FuzzStartRecord(f *testing.F) {
	var b [startRecordSize]byte
	f.Add(b[:])
	s := startRecord{begun: 7, served: 6}
	s.put(b[:])
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var s, again startRecord
		if s.decode(b) != nil {
			return
		}
		var out [startRecordSize]byte
		s.put(out[:])
		if err := again.decode(out[:]); err != nil || again != s {
			t.Errorf("%+v became %+v, %v", s, again, err)
		}
	})
}
