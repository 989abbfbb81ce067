package chunk

import (
	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// Metadata is what a shard asks of the metadata servers. Calls don't block; cb is called later on
// the shard's thread, once: with the answer or an error of kind Conflict, NotFound, ...
type Metadata interface {
	// GetChunk gets the committed configuration of a chunk.
	GetChunk(id dataplane.ChunkID, cb func(*control.ChunkConfig, error))
	// Reconfigure changes it by compare-and-set.
	Reconfigure(req *control.ReconfigureReq, cb func(*control.ChunkConfig, error))
	// Unreachable reports a member that doesn't answer.
	Unreachable(req *control.UnreachableReq)
	// Event adds a line to the cluster's event log; TimeNs and Source are filled in.
	Event(e *control.Event)
}
