package control

import "pstorage/dataplane"

// Chunk maps are pushed on change: whoever asked for a map with MapReq.Watch is told when members
// of chunks of that file change, over the connection that the question came by. Nothing depends on
// it: chunk servers refuse what an old map leads to, and pushes may be lost, late, twice, or never
// come (the leader has changed, too many files are watched, the server is of an earlier version
// and skips Watch). A receiver takes a push for a chunk that it knows, with a higher epoch, and
// nothing else. After a new connection WatchMapsReq asks again, for all files in use.
//
// A MapPush, as package doc says how structs are encoded; offsets of one with one chunk of three
// members and one server with an address of A bytes:
//
//	offset size field
//	     0    4 length of what follows: 73 + A
//	     4    8 file id
//	    12    4 number of chunks: 1
//	    16    4 length of the chunk: 32
//	    20    4 index in the file
//	    24    8 chunk id
//	    32    4 epoch
//	    36    4 number of members: 3
//	    40   12 ids of the members, the head first
//	    52    4 number of servers: 1
//	    56    4 length of the server: 10 + A
//	    60    4 id
//	    64    4 A
//	    68    A address, "ip:port"
//	  68+A    1 its lease is valid
//	  69+A    1 it is ill
//	  70+A      the end
//
// The connection's frame around it has the checksum.

// MapPush says that members of chunks of a file have changed, and where servers are that it names.
type MapPush struct {
	File    dataplane.FileID
	Chunks  []ChunkMap // at most MaxMapPush, in the order of the changes
	Servers []CSAddr
}

// MaxMapPush is the most chunks in one MapPush.
const MaxMapPush = 256

// WatchMapsReq asks to be told of changes, for files whose maps were asked for over an earlier
// connection. A server of an earlier version answers NotSupported.
type WatchMapsReq struct{ Files []dataplane.FileID }

// MaxWatched is the most files in one WatchMapsReq, and of one connection: a further one takes the
// place of the one that was asked for first.
const MaxWatched = 1024

// Valid says whether a push makes sense.
func (p *MapPush) Valid() bool {
	for i := range p.Chunks {
		m := &p.Chunks[i]
		if m.Chunk == 0 || m.Epoch == 0 || len(m.Members) == 0 ||
			len(m.Members) > dataplane.MaxReplicas {
			return false
		}
	}
	return len(p.Chunks) <= MaxMapPush
}
