package mds

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/hashicorp/raft"
)

// What a leadership decides, as that a lease has run out, holds in its own term only: a later one
// may have given leases that the decision doesn't know of, and may be this server's, too. So the
// term goes with the command, in the leadership's context, up to the place where raft gives the
// entry its term: there an entry that was decided in another one is refused.

// termKey is what a leadership's context has its term under.
type termKey struct{}

func withTerm(ctx context.Context, term uint64) context.Context {
	return context.WithValue(ctx, termKey{}, term)
}

// termOf returns the term of the leadership that ctx belongs to; 0: it belongs to none.
func termOf(ctx context.Context) uint64 {
	term, _ := ctx.Value(termKey{}).(uint64)
	return term
}

// guarded is an entry that gets into the log in that term, or never; 0: in any.
func guarded(entry []byte, term uint64) raft.Log {
	log := raft.Log{Data: entry}
	if term != 0 {
		log.Extensions = binary.LittleEndian.AppendUint64(nil, term)
	}
	return log
}

// errOtherTerm is why the guard refused an entry.
var errOtherTerm = errors.New("it was decided in another term")

// termGuard is the log as raft sees it. Raft stores an entry right after it has given it its term.
// The term that it was decided in isn't stored, so entries from other servers have none. A leader
// that is refused an entry steps down, and may be elected again.
type termGuard struct{ *raft.LogCache }

// StoreLog implements raft.LogStore.
func (g termGuard) StoreLog(e *raft.Log) error { return g.StoreLogs([]*raft.Log{e}) }

// StoreLogs implements raft.LogStore.
func (g termGuard) StoreLogs(logs []*raft.Log) error {
	for _, e := range logs {
		if len(e.Extensions) == 8 {
			if binary.LittleEndian.Uint64(e.Extensions) != e.Term {
				return errOtherTerm
			}
			e.Extensions = nil
		}
	}
	return g.LogCache.StoreLogs(logs)
}
