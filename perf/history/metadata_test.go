package history

import (
	"testing"
	"time"
)

// TestCheckMeta has histories of two clients, right and wrong ones.
func TestCheckMeta(t *testing.T) {
	create := func(inv, ret int64, name int, file uint64, s MetaStatus) MetaOp {
		return MetaOp{Inv: inv, Ret: ret, Kind: MetaCreate, Name: name, File: file, Status: s}
	}
	lookup := func(inv, ret int64, name int, file uint64, s MetaStatus) MetaOp {
		return MetaOp{Client: 1, Inv: inv, Ret: ret, Kind: MetaLookup, Name: name, File: file,
			Status: s}
	}
	missing := func(inv, ret int64, name int) MetaOp {
		return lookup(inv, ret, name, 0, MetaNotFound)
	}
	chunk := func(kind MetaKind, inv, ret int64, file, chunk uint64) MetaOp {
		return MetaOp{Inv: inv, Ret: ret, Kind: kind, File: file, Chunk: chunk}
	}
	rename := func(inv, ret int64, from, to int) MetaOp {
		return MetaOp{Client: 2, Inv: inv, Ret: ret, Kind: MetaRename, Name: from, To: to}
	}
	for name, c := range map[string]struct {
		ops  []MetaOp
		fine bool
	}{
		"seen":             {[]MetaOp{create(1, 2, 0, 7, MetaOK), lookup(3, 4, 0, 7, MetaOK)}, true},
		"lost":             {[]MetaOp{create(1, 2, 0, 7, MetaOK), missing(3, 4, 0)}, false},
		"at the same time": {[]MetaOp{create(1, 4, 0, 7, MetaOK), missing(2, 3, 0)}, true},
		"seen, then not": {[]MetaOp{create(1, 9, 0, 7, MetaOK), lookup(2, 3, 0, 7, MetaOK),
			missing(4, 5, 0)}, false},
		"twice": {[]MetaOp{create(1, 2, 0, 7, MetaOK),
			create(3, 4, 0, 8, MetaOK)}, false},
		"done twice by a repetition": {[]MetaOp{create(1, 2, 0, 0, MetaExists)}, false},
		"renamed": {[]MetaOp{create(1, 2, 0, 7, MetaOK), rename(3, 4, 0, 1),
			lookup(5, 6, 1, 7, MetaOK)}, true},
		"renamed, and still there": {[]MetaOp{create(1, 2, 0, 7, MetaOK), rename(3, 4, 0, 1),
			lookup(5, 6, 0, 7, MetaOK)}, false},
		"map": {[]MetaOp{create(1, 2, 0, 7, MetaOK), chunk(MetaAllocate, 3, 4, 7, 99),
			chunk(MetaMap, 5, 6, 7, 99)}, true},
		"old map": {[]MetaOp{create(1, 2, 0, 7, MetaOK), chunk(MetaAllocate, 3, 4, 7, 99),
			chunk(MetaMap, 5, 6, 7, 0)}, false},
		"map of what was cut off": {[]MetaOp{create(1, 2, 0, 7, MetaOK),
			chunk(MetaAllocate, 3, 4, 7, 99), chunk(MetaTruncate, 5, 6, 7, 0),
			chunk(MetaMap, 7, 8, 7, 99)}, false},
		"one chunk of two files": {[]MetaOp{create(1, 2, 0, 7, MetaOK), create(1, 2, 1, 8, MetaOK),
			chunk(MetaAllocate, 3, 4, 7, 99), chunk(MetaAllocate, 3, 4, 8, 99)}, false},
		"list": {[]MetaOp{create(1, 2, 1, 7, MetaOK), {Inv: 3, Ret: 4, Kind: MetaList,
			List: [MetaNames]uint64{0, 7}}}, true},
		"list without it": {[]MetaOp{create(1, 2, 1, 7, MetaOK), {Inv: 3, Ret: 4,
			Kind: MetaList}}, false},
	} {
		wrong, unknown := CheckMeta(c.ops, time.Minute)
		if unknown || (wrong == "") != c.fine {
			t.Errorf("%s: found %q, fine is %v", name, wrong, c.fine)
		}
	}
}
