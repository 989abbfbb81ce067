package control

import "pstorage/dataplane"

// The control opcodes. Each names its request and reply message.
const (
	// Namespace (clients, admin).
	OpLookup    = dataplane.OpControlBase + 0  // LookupReq -> Attr
	OpGetAttr   = dataplane.OpControlBase + 1  // FileReq -> Attr
	OpSetAttr   = dataplane.OpControlBase + 2  // SetAttrReq -> Attr
	OpCreate    = dataplane.OpControlBase + 3  // CreateReq -> Attr
	OpUnlink    = dataplane.OpControlBase + 4  // UnlinkReq -> Empty
	OpRename    = dataplane.OpControlBase + 5  // RenameReq -> Empty
	OpReadDir   = dataplane.OpControlBase + 6  // ReadDirReq -> ReadDirReply
	OpGrow      = dataplane.OpControlBase + 7  // GrowReq -> Attr: size = max(size, Size)
	OpGetMap    = dataplane.OpControlBase + 8  // MapReq -> MapReply
	OpAllocate  = dataplane.OpControlBase + 9  // MapReq -> MapReply; makes missing chunks
	OpStatFS    = dataplane.OpControlBase + 10 // Empty -> StatFSReply
	OpGetXattr  = dataplane.OpControlBase + 11 // XattrReq -> XattrReply
	OpSetXattr  = dataplane.OpControlBase + 12 // XattrReq -> Empty (Value nil and Remove: remove)
	OpListXattr = dataplane.OpControlBase + 13 // FileReq -> XattrReply (names, each with NUL)

	// OpWatchMaps: WatchMapsReq -> Empty; see mapwatch.go.
	OpWatchMaps = dataplane.OpControlBase + 14

	// File leases: who may write a file, see lease.go (clients).
	OpAcquireLease  = dataplane.OpControlBase + 20 // AcquireLeaseReq -> LeaseReply
	OpReleaseLeases = dataplane.OpControlBase + 21 // ReleaseLeasesReq -> Empty
	OpRenewLeases   = dataplane.OpControlBase + 22 // RenewLeasesReq -> RenewLeasesReply

	// Chunk servers and supervisors.
	OpRegisterCS  = dataplane.OpControlBase + 32 // RegisterCSReq -> RegisterCSReply
	OpHeartbeat   = dataplane.OpControlBase + 33 // HeartbeatReq -> HeartbeatReply
	OpGetChunk    = dataplane.OpControlBase + 34 // GetChunkReq -> ChunkConfig
	OpReconfigure = dataplane.OpControlBase + 35 // ReconfigureReq -> ChunkConfig: compare-and-set
	OpUnreachable = dataplane.OpControlBase + 36 // UnreachableReq -> Empty (clients, CS)
	OpExited      = dataplane.OpControlBase + 37 // ExitedReq -> Empty (supervisor)
	OpAddEvent    = dataplane.OpControlBase + 38 // Event -> Empty
	// OpInventory: InventoryReq -> Empty, before an OpRegisterCS over the same connection.
	OpInventory = dataplane.OpControlBase + 44
	OpRefused   = dataplane.OpControlBase + 45 // RefusedReq -> Empty (supervisor)

	// Metadata servers among themselves, and where they are.
	OpMDSReady = dataplane.OpControlBase + 70 // MDSReadyReq -> MDSReadyReply (metadata servers)
	OpMDSList  = dataplane.OpControlBase + 71 // Empty -> MDSListReply

	// Pushes, from the metadata server to a chunk server, FlagPush, no reply.
	OpSettle = dataplane.OpControlBase + 48 // SettlePush: be the coordinator for these chunks
	OpForget = dataplane.OpControlBase + 49 // ForgetPush: delete these chunks
	// OpRecover: RecoverPush, to the heads of chunks that have too few members.
	OpRecover = dataplane.OpControlBase + 50
	OpScrub   = dataplane.OpControlBase + 51 // ScrubPush: compare the whole store with its checksums
	OpFence   = dataplane.OpControlBase + 56 // FencePush: refuse older tokens from now on

	// OpMapChanged: MapPush, from the metadata server to a client.
	OpMapChanged = dataplane.OpControlBase + 52

	// Administration.
	OpAdmin = dataplane.OpControlBase + 64 // AdminReq -> AdminReply
)

// Empty has no fields.
type Empty struct{}

// ErrorReply is the payload of a reply whose status isn't OK.
type ErrorReply struct {
	Message string
	Leader  string // NotLeader: "ip:port" of the leader, if known
	Relays  bool   // NotLeader: this server passes connections on to the leader (Relay)
}

// FileType is the type of a namespace entry.
type FileType uint8

// The file types.
const (
	TypeFile    FileType = 1
	TypeDir     FileType = 2
	TypeSymlink FileType = 3
)

// Attr describes a file, directory or symlink.
type Attr struct {
	File      dataplane.FileID
	Type      FileType
	Mode      uint32 // permission bits, 07777
	UID, GID  uint32
	Size      uint64 // bytes
	Links     uint32
	ATimeNs   int64 // since 1970
	MTimeNs   int64
	CTimeNs   int64
	Target    string // symlink
	Allocated uint64 // chunks
	Policy    Policy
}

// Policy is how a file's chunks are kept; inherited from the directory at creation.
type Policy struct {
	Replicas  uint8 // normal number
	Minimum   uint8 // fewest to write
	Domain    uint8 // failure domain: 0 disk, 1 host, 2 rack, 3 row, 4 room
	Tier      uint8 // 0-3
	AckMemory bool  // write-ack=memory
}

// LookupReq finds Name in directory Parent.
type LookupReq struct {
	Parent dataplane.FileID
	Name   string
}

// FileReq names a file.
type FileReq struct{ File dataplane.FileID }

// Bits of SetAttrReq.Mask.
const (
	SetMode uint32 = 1 << iota
	SetUID
	SetGID
	SetSize
	SetATime
	SetMTime
	SetPolicy
)

// SetAttrReq changes the attributes in Mask. A smaller size frees whole chunks behind it; what
// lies behind the end of the last one is zeroed by the client first.
type SetAttrReq struct {
	File             dataplane.FileID
	Mask             uint32
	Mode, UID, GID   uint32
	Size             uint64
	ATimeNs, MTimeNs int64
	Policy           Policy
	// Token, with a size, is of the write lease under which that is changed: if it is no longer the
	// client's the request is refused (Fenced). 0: it isn't looked at.
	Token uint64
}

// CreateReq makes an entry. Without Exclusive an existing entry of the same type is returned.
type CreateReq struct {
	Parent    dataplane.FileID
	Name      string
	Type      FileType
	Mode      uint32
	UID, GID  uint32
	Target    string // symlink
	Exclusive bool
}

// UnlinkReq removes a name; Dir says that it must be (not be) a directory.
type UnlinkReq struct {
	Parent dataplane.FileID
	Name   string
	Dir    bool
}

// RenameReq moves an entry, replacing what is there unless NoReplace.
type RenameReq struct {
	FromParent dataplane.FileID
	FromName   string
	ToParent   dataplane.FileID
	ToName     string
	NoReplace  bool
	// Keep is the name, in the root directory, that the file Kept gets if it is the one that is
	// replaced: it isn't removed then. Empty: what is replaced is removed.
	Keep string
	Kept dataplane.FileID
}

// ReadDirReq lists a directory in the order of names, after the name After.
type ReadDirReq struct {
	Dir   dataplane.FileID
	After string
	Max   uint32
}

// ReadDirReply has entries in the order of names; More: there are others.
type ReadDirReply struct {
	Entries []DirEntry
	More    bool
}

// DirEntry is one name in a directory.
type DirEntry struct {
	Name string
	Attr Attr
}

// GrowReq makes a file at least Size bytes long.
type GrowReq struct {
	File dataplane.FileID
	Size uint64
	// Token is as in SetAttrReq.
	Token uint64
}

// MapReq asks for chunks [First, First+Count) of a file. Count <= MaxMapRange.
type MapReq struct {
	File  dataplane.FileID
	First uint32
	Count uint32
	Watch bool // tell me when members of the file's chunks change: see mapwatch.go
}

// MaxMapRange is the most chunks in one MapReq.
const MaxMapRange = 1024

// MapReply has the chunks that exist in the range, ascending by index, and where their servers
// are. A chunk that isn't in it isn't allocated and reads as zeros.
type MapReply struct {
	Chunks  []ChunkMap
	Servers []CSAddr
}

// ChunkMap is what a client knows of a chunk. The first member is the head.
type ChunkMap struct {
	Index   uint32 // in the file
	Chunk   dataplane.ChunkID
	Epoch   dataplane.Epoch
	Members []dataplane.CSID
}

// CSAddr is where a chunk server is.
type CSAddr struct {
	CS   dataplane.CSID
	Addr string // "ip:port"; empty: not registered since the leader started
	Live bool   // its lease is valid, as far as the leader knows
	Ill  bool   // much slower than its peers: to be avoided for reads
}

// StatFSReply is in bytes of user data (replicas already divided out, default policy).
type StatFSReply struct {
	Total, Free uint64
	Files       uint64
}

// XattrReq names an extended attribute.
type XattrReq struct {
	File   dataplane.FileID
	Name   string
	Value  []byte
	Remove bool
	Flags  uint32 // setxattr(2): 1 create, 2 replace
}

// XattrReply carries a value or a list of names.
type XattrReply struct{ Value []byte }

// ChunkConfig is the membership of a chunk, as the metadata servers committed it.
type ChunkConfig struct {
	Chunk   dataplane.ChunkID
	File    dataplane.FileID
	Index   uint32
	Epoch   dataplane.Epoch
	Created bool // some write may have been acknowledged: members without data have lost it
	Minimum uint8
	Ack     uint8    // 0 disk, 1 memory
	Members []CSAddr // in the order of the chain; the first is the head
	Wanted  uint8    // members it should have; 0: not said, by a server of an older version
	Fence   uint64   // the smallest lease token with which the file may be written
	// Former, in answers to GetChunkReq: servers that were members, whose places are free, and that
	// may still hold what they had.
	Former []CSAddr
}

// GetChunkReq asks for a chunk's configuration (linearizable).
type GetChunkReq struct{ Chunk dataplane.ChunkID }

// ReconfigureReq replaces the members of a chunk if its epoch still is Epoch; the reply has
// Epoch+1. Members that stay keep their order. Status Conflict: the reply's message says what is.
type ReconfigureReq struct {
	Chunk   dataplane.ChunkID
	Epoch   dataplane.Epoch
	Members []dataplane.CSID
	// SetCreated marks the chunk as created without a change of members or epoch.
	SetCreated bool
	// Lost are those of the members left out whose tails say that they lost what they had
	// acknowledged: they may be asked for their leases so that they can be excluded.
	Lost []dataplane.CSID
}

// RegisterCSReq announces a chunk server process. CS is zero at the first registration ever.
type RegisterCSReq struct {
	CS       dataplane.CSID
	Disk     [16]byte // random identity of the directory, made by make-cs
	Boot     uint64   // counter of starts, durable in the directory before this is sent
	Addr     string   // "ip:port" of the data port
	Host     string
	Path     string // of the directory, for people
	Tier     uint8
	Capacity uint64 // bytes for chunks
	Used     uint64
	Location string // "room/row/rack", may be empty
	Chunks   []HeldChunk
	// Instance is random and the same for as long as the process lives, so that a process that
	// registers again isn't taken for a copy of its directory. Zero: the process is known by its
	// control.Client, so it must use one and the same for registrations and heartbeats.
	Instance uint64
	// Parts is how many InventoryReqs came before this over the same connection: their chunks are
	// part of the inventory, too.
	Parts    uint32
	FenceSeq uint64 // as in HeartbeatReq
	// Starts are random numbers, not 0, of starts on the directory: the last is this one's, the
	// others are of those before it, at least back to the last one that registered for certain. So
	// an older copy of the directory is known however often it was started. None: an older program.
	Starts []uint64
	// Confirmed is Boot of the last start that registered for certain, as far as the directory
	// tells; 0: none. Metadata servers that never had it are an older copy of themselves.
	Confirmed uint64
	// Seen is the highest Index in a reply to this process; 0: none. Metadata servers whose record
	// isn't that long have an older copy of it: no server gets a lease from them.
	Seen uint64
	// Marks: the process understands RegisterCSReply.RetiredMarks.
	Marks bool
}

// MaxStarts is the most Starts of a registration.
const MaxStarts = 256

// InventoryReq is a part of an inventory that is too long for one message: Part counts from 0.
type InventoryReq struct {
	Part   uint32
	Chunks []HeldChunk
}

// RefusedReq says that a chunk server's process refuses to serve its directory, and why. It is
// repeated as long as that is so. CS is 0 if the directory doesn't say which it is.
type RefusedReq struct {
	CS         dataplane.CSID
	Host, Path string
	Reason     string
}

// HeldChunk is one chunk in a chunk server's inventory.
type HeldChunk struct {
	Chunk dataplane.ChunkID
	Epoch dataplane.Epoch
}

// RegisterCSReply gives the id and the lease. Status Denied or Conflict: do not serve (I8).
type RegisterCSReply struct {
	CS      dataplane.CSID
	LeaseNs int64               // counted from when the request was sent
	Forget  []dataplane.ChunkID // not in the table any more: delete
	// Retired: the server isn't a member of them any more but may be again: what it holds stays, is
	// served to nobody, and saves most of a copy.
	Retired []dataplane.ChunkID
	Fences  FencePush // to be taken over before serving; More: the lease isn't given yet
	// Index is how many entries the metadata servers' record had at the time, at least.
	Index uint64
	// RetiredMarks stands for Retired if that is long: bit i%8 of byte i/8 is set for chunk i of the
	// inventory, its parts first.
	RetiredMarks []byte
}

// RetiredOf lists the chunks of the inventory that are retired.
func (r *RegisterCSReply) RetiredOf(held []HeldChunk) []dataplane.ChunkID {
	list := r.Retired
	for i := range held {
		if i/8 < len(r.RetiredMarks) && r.RetiredMarks[i/8]&(1<<(i%8)) != 0 {
			list = append(list, held[i].Chunk)
		}
	}
	return list
}

// HeartbeatReq renews the lease of a registered process.
type HeartbeatReq struct {
	CS             dataplane.CSID
	Boot           uint64
	Capacity, Used uint64
	Stats          CSStats
	Failed         string // not empty: the disk failed, and how
	Instance       uint64 // as in RegisterCSReq
	// StallNs is for how long writes of the log have been under way without any of them being done,
	// or the store has been silent to those who wait for it, beyond what a disk may take.
	StallNs int64
	// Waits is how long this server, as the head of chunks or a link of a chain, waits for others.
	Waits []PeerWait
	// Yielded: the process has given its lease up, as a reply had asked for: it serves nothing.
	Yielded  bool
	FenceSeq uint64 // fences up to this number are in force; 0: none is
	Seen     uint64 // as in RegisterCSReq
}

// PeerWait is how long a chunk server waits for the acknowledgements of another one.
type PeerWait struct {
	CS      dataplane.CSID
	WaitNs  int64 // mean since the last heartbeat; 0: there were none
	StallNs int64 // writes are under way and none has been acknowledged for so long
}

// CSStats are counters since the start of the process.
type CSStats struct {
	Reads, Writes         uint64
	ReadBytes, WriteBytes uint64
	CRCErrors, IOErrors   uint64
	LogUsed, LogSize      uint64 // bytes
	Chunks                uint64
	Clients               uint32

	// The scrubber's pass that is under way, or the last one. All but the times are of that pass.
	ScrubRunning, ScrubManual       bool   // Manual: somebody asked for it
	ScrubDone, ScrubTotal           uint64 // bytes of chunks, holes included
	ScrubRead                       uint64 // bytes
	ScrubBad                        uint64 // blocks that didn't match their checksums
	ScrubRepaired, ScrubLost        uint64 // of them; Lost: no other member had a good copy
	ScrubMismatches                 uint64 // parts of 64 KiB in which replicas differed
	ScrubStartedNs, ScrubFinishedNs int64  // since 1970; Finished: the last complete pass; 0: never

	Allocated uint64 // bytes that the store takes of its file system; 0: not known

	// Means over the last second or so, ns; 0: there was nothing to measure.
	LogWaitNs  int64 // from the beginning of a write to the log until it is durable
	ReadWaitNs int64 // of reads of the disk

	Copies, Deltas uint64 // chunks copied to a new member as their head; Deltas: only what changed
	CopyBytes      uint64 // bytes sent for copies, mirrored writes included

	FromLog, FromStore uint64 // blocks read for clients: out of the log or its read cache, or not

	Queue uint32 // requests that haven't been answered yet, when this was said
}

// HeartbeatReply: status NotFound or Conflict means register again.
type HeartbeatReply struct {
	LeaseNs int64
	// Yield: writes don't get on here. The process gives its lease up at once, ends what it has
	// begun for clients without an acknowledgement, and says Yielded in its next heartbeat, which it
	// sends at once.
	Yield  bool
	Fences FencePush // as in RegisterCSReply
	Index  uint64    // as in RegisterCSReply
}

// UnreachableReq reports that CS doesn't answer for these chunks. The server starts a
// reconfiguration when that chunk server's lease is gone; otherwise the asker tries on.
type UnreachableReq struct {
	CS     dataplane.CSID
	Chunks []HeldChunk
}

// ExitedReq certifies that this very process (boot counter) has exited.
type ExitedReq struct {
	CS   dataplane.CSID
	Boot uint64
	// Planned: it was asked to stop, in good order, and need not be back soon.
	Planned bool
}

// MDSReadyReq is a metadata server's question to the leader: is it still a member, and may it vote
// now? Status NotFound: it was removed.
type MDSReadyReq struct {
	Node    uint32
	Applied uint64 // index of the last log entry that it has applied
	// Damaged: what it had is damaged, and it asks for a new number, to begin with nothing. The
	// value is its address, "ip:port".
	Damaged string
}

// MDSReadyReply says whether it votes.
type MDSReadyReply struct {
	Voter bool
	Node  uint32 // to a damaged one: its new number
}

// MDSListReply is where the metadata servers are, "ip:port".
type MDSListReply struct{ Addrs []string }

// SettlePush asks the receiver to bring the members of each chunk to one history and, when Lost is
// not empty, to exclude those members (compare-and-set first). With Lead the receiver becomes the
// head in the same change of the configuration: the client that writes can't reach the one of now,
// or heads are spread over the servers that are left.
type SettlePush struct {
	Chunks []ChunkConfig
	Lost   []dataplane.CSID
	Lead   bool
}

// ForgetPush asks the receiver to delete chunks. With Epochs, Chunks[i] is deleted only if what is
// held of it is older than Epochs[i]: the receiver gave its place up at that epoch, and may have
// become a member again since.
type ForgetPush struct {
	Chunks []dataplane.ChunkID
	Epochs []dataplane.Epoch
}

// RecoverPush asks the receiver, the head of each chunk, to copy Chunks[i] to Targets[i], which
// isn't a member, and to add it as the last one. If Leaving[i] isn't zero, that member (it may be
// the head itself) gives its place up in the same change of the configuration; without Leaving
// nobody does. The head seals it together with the other members before it asks for that change, so
// that it needn't lose its lease. Who can't do that now does nothing; it is asked again.
type RecoverPush struct {
	Chunks  []ChunkConfig
	Targets []CSAddr
	Leaving []dataplane.CSID
}

// ScrubPush asks the receiver to begin a pass of its scrubber now.
type ScrubPush struct{}

// Severity of an event.
type Severity uint8

// The severities.
const (
	Info    Severity = 0
	Warning Severity = 1
	Fault   Severity = 2
)

// Event is one line of the cluster's event log.
type Event struct {
	ID       uint64 // given by the metadata server
	TimeNs   int64  // since 1970
	Severity Severity
	Source   string // "cs 3", "mds 1", "client host17"
	Code     string // stable, for programs: "crc-mismatch"
	Message  string // for people
}

// AdminReq asks for a document. Command: stat, list-services, events, file-info, ...
type AdminReq struct {
	Command string
	Args    []byte // JSON
	Packs   bool   // the asker understands AdminReply.Packed
}

// AdminReply is a JSON document.
type AdminReply struct {
	Doc    []byte
	Packed bool // Doc is compressed (DEFLATE): it would be too long
}
