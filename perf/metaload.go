package perf

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/perf/history"
)

// MetaCall makes a request of the metadata servers, again and again with the same request id until
// one of them has answered it.
type MetaCall func(ctx context.Context, op dataplane.Opcode, req, reply any) error

// MetaLoad does random operations on the names of one directory and on the maps of its files, and
// keeps what came of them, for history.CheckMeta. Each client has one of its own.
type MetaLoad struct {
	Dir    dataplane.FileID
	Client int
	Rand   *rand.Rand
	Call   MetaCall
	Now    func() int64 // ns of a monotonic clock that all clients share
	Ops    []history.MetaOp

	files []uint64 // that were met
}

// Step does one operation. An error means that it has no outcome that a history knows.
func (m *MetaLoad) Step(ctx context.Context) error {
	o := history.MetaOp{Client: m.Client, Name: m.Rand.IntN(history.MetaNames),
		To: m.Rand.IntN(history.MetaNames), Kind: history.MetaKind(m.Rand.IntN(8))}
	if o.Kind >= history.MetaAllocate {
		if len(m.files) == 0 {
			o.Kind = history.MetaCreate
		} else {
			o.File = m.files[len(m.files)-1-m.Rand.IntN(min(3, len(m.files)))]
		}
	}
	o.Inv = m.Now()
	err := m.do(ctx, &o)
	o.Ret = m.Now()
	switch dataplane.KindOf(err) {
	case dataplane.OK:
		o.Status = history.MetaOK
	case dataplane.NotFound:
		o.Status = history.MetaNotFound
	case dataplane.Exists:
		o.Status = history.MetaExists
	case dataplane.NoSpace:
		return nil // nothing was done: a new leader doesn't know its chunk servers yet
	default:
		return fmt.Errorf("%v: %w", o, err)
	}
	m.Ops = append(m.Ops, o)
	if o.File != 0 && !slices.Contains(m.files, o.File) {
		m.files = append(m.files, o.File)
	}
	return nil
}

func metaName(i int) string { return string(rune('a' + i)) }

// do makes the request of an operation and takes over what it answers.
func (m *MetaLoad) do(ctx context.Context, o *history.MetaOp) error {
	file := dataplane.FileID(o.File)
	switch o.Kind {
	case history.MetaCreate:
		var a control.Attr
		err := m.Call(ctx, control.OpCreate, &control.CreateReq{Parent: m.Dir,
			Name: metaName(o.Name), Type: control.TypeFile, Mode: 0o644, Exclusive: true},
			&a)
		o.File = uint64(a.File)
		return err
	case history.MetaRemove:
		return m.Call(ctx, control.OpUnlink, &control.UnlinkReq{Parent: m.Dir,
			Name: metaName(o.Name)}, nil)
	case history.MetaRename:
		return m.Call(ctx, control.OpRename, &control.RenameReq{FromParent: m.Dir,
			FromName: metaName(o.Name), ToParent: m.Dir, ToName: metaName(o.To)}, nil)
	case history.MetaLookup:
		var a control.Attr
		err := m.Call(ctx, control.OpLookup, &control.LookupReq{Parent: m.Dir,
			Name: metaName(o.Name)}, &a)
		o.File = uint64(a.File)
		return err
	case history.MetaList:
		var list control.ReadDirReply
		err := m.Call(ctx, control.OpReadDir, &control.ReadDirReq{Dir: m.Dir}, &list)
		for _, e := range list.Entries {
			o.List[e.Name[0]-'a'] = uint64(e.Attr.File)
		}
		return err
	case history.MetaTruncate:
		return m.Call(ctx, control.OpSetAttr, &control.SetAttrReq{File: file,
			Mask: control.SetSize}, nil)
	}
	op := control.OpGetMap
	if o.Kind == history.MetaAllocate {
		op = control.OpAllocate
	}
	var r control.MapReply
	err := m.Call(ctx, op, &control.MapReq{File: file, Count: 1}, &r)
	if len(r.Chunks) > 0 {
		o.Chunk = uint64(r.Chunks[0].Chunk)
	}
	return err
}
