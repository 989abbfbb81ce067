// Package history checks histories of registers: is there an order of all operations, one after
// the other, that agrees with what was read and with the times (linearizability)? It knows
// registers whose writes all have different values only, which makes the check fast.
package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"
)

// Never is the time of return of an operation that didn't.
const Never = int64(math.MaxInt64)

// Op is a read or write of a whole register. Times are in nanoseconds of one monotonic clock.
type Op struct {
	Value    uint64 // unique for writes; 0: as it was at first
	Inv, Ret int64  // Ret: Never if it isn't known to have happened
	Write    bool
}

// zone is what is known of the time at which a register held one value: from the earliest return
// of an operation with that value to the latest invocation of one. (Gibbons and Korach, Testing
// shared memories, 1997: with unique values a register's history is linearizable if and only if
// these zones fit together.)
type zone struct {
	value    uint64
	firstRet int64
	lastInv  int64
	write    *Op
	reads    int
}

// forward: the register certainly held the value all through [firstRet, lastInv].
func (z *zone) forward() bool { return z.firstRet < z.lastInv }

func (z *zone) lo() int64 { return min(z.firstRet, z.lastInv) }
func (z *zone) hi() int64 { return max(z.firstRet, z.lastInv) }

// Check says what is wrong with the history of a register that held 0 at first, whose times are
// above 0; "" if nothing is. A write that didn't return may happen at any later time, or never.
// Reads that didn't return must be left out.
func Check(ops []Op) string {
	initial := Op{Value: 0, Inv: -2, Ret: -1, Write: true}
	byValue := map[uint64]*zone{0: {write: &initial, firstRet: -1, lastInv: -2}}
	for i := range ops {
		if o := &ops[i]; o.Write {
			if byValue[o.Value] != nil {
				return fmt.Sprintf("value %x was written twice", o.Value)
			}
			byValue[o.Value] = &zone{value: o.Value, write: o, firstRet: o.Ret, lastInv: o.Inv}
		}
	}
	for i := range ops {
		o := &ops[i]
		if o.Write {
			continue
		}
		z := byValue[o.Value]
		if z == nil {
			return fmt.Sprintf("value %x was read and never written", o.Value)
		}
		if o.Ret < z.write.Inv {
			return fmt.Sprintf("value %x was read before it was written", o.Value)
		}
		z.reads++
		z.firstRet, z.lastInv = min(z.firstRet, o.Ret), max(z.lastInv, o.Inv)
	}
	return fit(byValue)
}

// fit says what is wrong with the zones of a register.
func fit(byValue map[uint64]*zone) string {
	var forward, backward []*zone
	for _, z := range byValue {
		switch {
		case z.write.Ret == Never && z.reads == 0: // never happened
		case z.forward():
			forward = append(forward, z)
		default:
			backward = append(backward, z)
		}
	}
	slices.SortFunc(forward, func(a, b *zone) int {
		return cmp.Or(cmp.Compare(a.lo(), b.lo()), cmp.Compare(a.value, b.value))
	})
	for i := 1; i < len(forward); i++ {
		if a, b := forward[i-1], forward[i]; b.lo() < a.hi() {
			return fmt.Sprintf("values %x (from %s to %s) and %x (from %s to %s) at the same time",
				a.value, When(a.lo()), When(a.hi()), b.value, When(b.lo()), When(b.hi()))
		}
	}
	slices.SortFunc(backward, func(a, b *zone) int { return cmp.Compare(a.value, b.value) })
	for _, b := range backward {
		// The forward zones don't overlap: only the last one that begins before b may hold it.
		i := sort.Search(len(forward), func(i int) bool { return forward[i].lo() >= b.lo() }) - 1
		if i < 0 {
			continue
		}
		if f := forward[i]; b.hi() < f.hi() {
			return fmt.Sprintf("value %x (between %s and %s) while the value was %x (from %s to %s)",
				b.value, When(b.lo()), When(b.hi()), f.value, When(f.lo()), When(f.hi()))
		}
	}
	return ""
}

// When writes a time for people, in seconds.
func When(t int64) string {
	if t == Never {
		return "never"
	}
	return fmt.Sprintf("%.6f", float64(t)/1e9)
}
