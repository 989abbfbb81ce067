package main

import (
	"cmp"
	"fmt"
	"slices"
)

// zone is what is known of the time at which a register held one value: from the earliest return
// of an operation with that value to the latest invocation of one. (Gibbons and Korach, Testing
// shared memories, 1997: with unique values a register's history is linearizable if and only if
// these zones fit together.)
type zone struct {
	value    uint64
	firstRet int64
	lastInv  int64
	write    *rop
	reads    int
}

// forward: the register certainly held the value all through [firstRet, lastInv].
func (z *zone) forward() bool { return z.firstRet < z.lastInv }

func (z *zone) lo() int64 { return min(z.firstRet, z.lastInv) }
func (z *zone) hi() int64 { return max(z.firstRet, z.lastInv) }

// linearizable says what is wrong with the history of a register whose writes have different
// values, and which held 0 at first; "" if nothing is. A write that didn't return may happen at
// any later time, or never.
func linearizable(history []rop) string {
	initial := rop{value: 0, inv: -2, ret: -1, write: true}
	byValue := map[uint64]*zone{0: {write: &initial, firstRet: -1, lastInv: -2}}
	for i := range history {
		if o := &history[i]; o.write {
			if byValue[o.value] != nil {
				return fmt.Sprintf("value %x was written twice", o.value)
			}
			byValue[o.value] = &zone{value: o.value, write: o, firstRet: o.ret, lastInv: o.inv}
		}
	}
	for i := range history {
		o := &history[i]
		if o.write {
			continue
		}
		z := byValue[o.value]
		if z == nil {
			return fmt.Sprintf("value %x was read and never written", o.value)
		}
		if o.ret < z.write.inv {
			return fmt.Sprintf("value %x was read before it was written", o.value)
		}
		z.reads++
		z.firstRet, z.lastInv = min(z.firstRet, o.ret), max(z.lastInv, o.inv)
	}
	var forward, backward []*zone
	for _, z := range byValue {
		switch {
		case z.write.ret == never && z.reads == 0: // never happened
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
				a.value, when(a.lo()), when(a.hi()), b.value, when(b.lo()), when(b.hi()))
		}
	}
	slices.SortFunc(backward, func(a, b *zone) int { return cmp.Compare(a.value, b.value) })
	for _, b := range backward {
		for _, f := range forward {
			if f.lo() < b.lo() && b.hi() < f.hi() {
				return fmt.Sprintf("value %x (between %s and %s) while the value was %x (from %s to %s)",
					b.value, when(b.lo()), when(b.hi()), f.value, when(f.lo()), when(f.hi()))
			}
		}
	}
	return ""
}
