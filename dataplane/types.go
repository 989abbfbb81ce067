package dataplane

import "fmt"

// Sizes that the formats are built on. All in bytes.
const (
	BlockSize = 4096     // unit of checksums, of linearizability and of disk I/O
	ChunkSize = 64 << 20 // a file is cut in chunks of this size
	PartSize  = 64 << 10 // largest payload of one data frame; larger requests are trains of parts

	BlocksPerChunk = ChunkSize / BlockSize // 16384
)

// ChunkID names a chunk for ever: generation<<40 | slot in the metadata server's flat table. Zero
// is no chunk.
type ChunkID uint64

// NewChunkID returns the id of the given table slot (below 1<<40) in its generation (at least 1).
func NewChunkID(generation uint32, slot uint64) ChunkID {
	return ChunkID(uint64(generation&0xffffff)<<40 | slot&(1<<40-1))
}

// Slot returns the index of the chunk's record in the flat table.
func (c ChunkID) Slot() uint64 { return uint64(c) & (1<<40 - 1) }

// Generation returns how often the slot had been given out when this id was made.
func (c ChunkID) Generation() uint32 { return uint32(c >> 40) }

func (c ChunkID) String() string { return fmt.Sprintf("%d.%d", c.Slot(), c.Generation()) }

// FileID names a file, directory or symlink. RootID is the root directory; zero is none.
type FileID uint64

// RootID is the file id of the cluster's root directory.
const RootID FileID = 1

// CSID names a chunk server for ever, given by the metadata server at its first registration.
// Zero is none.
type CSID uint32

// Epoch is the version of a chunk's membership. It changes only when a member is excluded or
// added. The first is 1; zero is none.
type Epoch uint32

// Seq numbers the writes of one chunk, from 1, without holes. Zero is "no write yet".
type Seq uint64

// ClientID names one client process for as long as it lives (random, not zero).
type ClientID uint64

// ClusterID names a cluster: random, made once by make-mds -I.
type ClusterID [16]byte

func (c ClusterID) String() string { return fmt.Sprintf("%x", c[:]) }

// Role is what a node's key allows it to act as.
type Role uint8

// The roles. They travel on the wire: never renumber.
const (
	RoleNone       Role = 0
	RoleClient     Role = 1 // reads and writes files
	RoleCS         Role = 2 // a chunk server
	RoleMDS        Role = 3 // a metadata server
	RoleAdmin      Role = 4 // the command line
	RoleSupervisor Role = 5 // parent process of a host's chunk servers
)

func (r Role) String() string {
	names := [...]string{"none", "client", "cs", "mds", "admin", "supervisor"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// Blocks returns how many 4 KiB blocks the byte range [off, off+n) touches.
func Blocks(off, n uint32) int {
	if n == 0 {
		return 0
	}
	return int((uint64(off)+uint64(n)+BlockSize-1)/BlockSize - uint64(off)/BlockSize)
}

// MaxReplicas is the most replicas that a chunk record can name.
const MaxReplicas = 8
