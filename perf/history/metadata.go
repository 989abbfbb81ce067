package history

import (
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"
)

// MetaNames is how many names a directory of a metadata history has, 0 to MetaNames-1.
const MetaNames = 5

// MetaKind is what a metadata operation does.
type MetaKind uint8

// The operations. Those on a file name it by its id, and answer NotFound if it has no name.
const (
	MetaCreate   MetaKind = iota // Name -> File, or Exists
	MetaRemove                   // Name
	MetaRename                   // Name, To, which is replaced
	MetaLookup                   // Name -> File
	MetaList                     // -> List
	MetaAllocate                 // File -> Chunk, a new one if it has none
	MetaMap                      // File -> Chunk, 0 if it has none
	MetaTruncate                 // File: its chunk is freed
)

// MetaStatus is how an operation ended.
type MetaStatus uint8

// The outcomes that a history knows.
const (
	MetaOK MetaStatus = iota
	MetaNotFound
	MetaExists
)

// MetaOp is an operation on the names of one directory, or on the map of a file in it that has at
// most one chunk. All operations of a history have returned: a client repeats a request until it
// is answered.
type MetaOp struct {
	Client   int
	Inv, Ret int64 // ns of one monotonic clock
	Kind     MetaKind
	Name, To int
	File     uint64 // asked for, or the answer
	Status   MetaStatus
	Chunk    uint64
	List     [MetaNames]uint64 // file ids by name, 0: no such name
}

func (o MetaOp) String() string {
	kind := [...]string{"create", "remove", "rename", "lookup", "list", "allocate", "map",
		"truncate"}[o.Kind]
	return fmt.Sprintf("%s to %s: client %d: %s name %d, to %d, file %d: status %d, chunk %x, list %v",
		When(o.Inv), When(o.Ret), o.Client, kind, o.Name, o.To, o.File, o.Status, o.Chunk, o.List)
}

// metaFile is what a name stands for.
type metaFile struct{ id, chunk uint64 }

// metaState is a directory, as the model has it.
type metaState [MetaNames]metaFile

// step says whether the operation, carried out on the directory, may have ended as it did, and
// what the directory is then.
func (s metaState) step(o *MetaOp) (bool, metaState) {
	switch o.Kind {
	case MetaAllocate, MetaMap, MetaTruncate:
		return s.stepFile(o)
	case MetaList:
		for i := range s {
			if s[i].id != o.List[i] {
				return false, s
			}
		}
		return o.Status == MetaOK, s
	}
	at := &s[o.Name]
	switch {
	case o.Kind == MetaCreate && at.id != 0:
		return o.Status == MetaExists, s
	case o.Kind == MetaCreate:
		*at = metaFile{id: o.File}
		return o.Status == MetaOK && o.File != 0, s
	case at.id == 0:
		return o.Status == MetaNotFound, s
	case o.Kind == MetaLookup:
		return o.Status == MetaOK && o.File == at.id, s
	case o.Kind == MetaRename && o.Name != o.To:
		s[o.To] = *at
		*at = metaFile{}
	case o.Kind == MetaRemove:
		*at = metaFile{}
	}
	return o.Status == MetaOK, s
}

func (s metaState) stepFile(o *MetaOp) (bool, metaState) {
	for i := range s {
		f := &s[i]
		if f.id != o.File {
			continue
		}
		switch {
		case o.Kind == MetaTruncate:
			f.chunk = 0
		case o.Kind == MetaAllocate && f.chunk == 0:
			f.chunk = o.Chunk
			return o.Status == MetaOK && o.Chunk != 0, s
		default:
			return o.Status == MetaOK && o.Chunk == f.chunk, s
		}
		return o.Status == MetaOK, s
	}
	return o.Status == MetaNotFound, s
}

// CheckMeta says what is wrong with the history of a directory that was empty at first: "" if
// there is an order of all operations, one after the other, that agrees with their outcomes and
// times (linearizability). unknown: it wasn't found out within the limit.
func CheckMeta(ops []MetaOp, limit time.Duration) (wrong string, unknown bool) {
	model := porcupine.Model{
		Init: func() any { return metaState{} },
		Step: func(state, input, _ any) (bool, any) {
			ok, next := state.(metaState).step(input.(*MetaOp))
			return ok, next
		},
	}
	list := make([]porcupine.Operation, len(ops))
	chunks := map[uint64]uint64{} // file of each chunk
	for i := range ops {
		o := &ops[i]
		list[i] = porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Inv, Return: o.Ret}
		if o.Chunk == 0 {
			continue
		}
		if f := chunks[o.Chunk]; f != 0 && f != o.File {
			return fmt.Sprintf("chunk %x belongs to files %d and %d", o.Chunk, f, o.File), false
		}
		chunks[o.Chunk] = o.File
	}
	switch porcupine.CheckOperationsTimeout(model, list, limit) {
	case porcupine.Ok:
		return "", false
	case porcupine.Unknown:
		return "", true
	}
	text := "no order of these operations explains them:"
	for i := range ops {
		text += "\n  " + ops[i].String()
	}
	return text, false
}
