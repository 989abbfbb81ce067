package control

import "encoding/json"

// The documents of OpAdmin: JSON, shared by the metadata server and the command line. Fields may
// be added; names don't change.

// The commands of AdminReq. "->" names the type of the arguments and of the answer.
const (
	AdminStat         = "stat"          // none -> StatDoc
	AdminListServices = "list-services" // none -> ServicesDoc
	AdminListClients  = "list-clients"  // none -> ClientsDoc
	AdminEvents       = "events"        // EventsArgs -> EventsDoc
	AdminFileInfo     = "file-info"     // PathArgs -> FileInfoDoc
	AdminGetAttr      = "get-attr"      // PathArgs -> AttrDoc
	AdminSetAttr      = "set-attr"      // SetAttrArgs -> AttrDoc
	AdminGetConfig    = "get-config"    // none -> ConfigDoc
	AdminSetConfig    = "set-config"    // SetConfigArgs -> ConfigDoc
	AdminRmCS         = "rm-cs"         // RmCSArgs -> RmCSDoc
	AdminScrubStart   = "scrub-start"   // ScrubArgs -> ScrubDoc
	AdminAddMDS       = "add-mds"       // AddMDSArgs -> AddMDSDoc
	AdminRemoveMDS    = "remove-mds"    // RemoveMDSArgs -> RemoveMDSDoc
)

// The keys of the cluster's configuration that mean something; an absent one has its default.
const (
	ConfigRebalance = "rebalance"                // on (default), off: no balancing of fill levels
	ConfigPerServer = "recovery.per-server"      // chunks copied at a time: from, and to, one server
	ConfigTotal     = "recovery.total"           // chunks copied at a time in all
	ConfigOffline   = "recovery.offline-timeout" // how long a silent server is waited for: 300s
	ConfigLimit     = "capacity.limit"           // of user data: 10T; writers wait above it
	ConfigMode      = "mode"                     // of connections: crc (default), secure
)

// ConfigKeys are all of them.
var ConfigKeys = []string{ConfigLimit, ConfigRebalance, ConfigOffline, ConfigPerServer,
	ConfigTotal, ConfigMode}

// The states of a chunk server in CSDoc.Status.
const (
	CSActive    = "active"    // its lease is valid
	CSInactive  = "inactive"  // silent, but its lease may still be valid, or it was only just here
	CSOffline   = "offline"   // its lease has ended: it serves nothing
	CSIll       = "ill"       // much slower than its peers
	CSReleasing = "releasing" // being drained: its chunks are moved to others
	CSFailed    = "failed"    // its disk failed
	CSDropped   = "dropped"   // removed from the cluster
	CSRefused   = "refused"   // its process won't serve its directory: Failed says why
)

// StatDoc is the state of the cluster.
type StatDoc struct {
	Cluster   string    `json:"cluster"`
	ClusterID string    `json:"cluster_id"`
	Health    string    `json:"health"` // "healthy", "degraded", "critical"
	Reasons   []string  `json:"reasons"`
	Space     SpaceDoc  `json:"space"`
	Files     uint64    `json:"files"` // files, directories and symlinks, without the root
	Chunks    ChunksDoc `json:"chunks"`
	// Recovery says what becomes of each degraded chunk; Moves of those that change servers.
	Recovery RecoveryDoc `json:"recovery"`
	Moves    MovesDoc    `json:"moves"`
	MDS      []MDSDoc    `json:"mds"`
	CS       []CSDoc     `json:"cs"`
	TimeNs   int64       `json:"time_ns"`
}

// SpaceDoc is in bytes. Total, free and used are of disks; the logical ones divide by the normal
// number of replicas of the root directory.
type SpaceDoc struct {
	Total        uint64 `json:"total"`
	Free         uint64 `json:"free"`
	Used         uint64 `json:"used"`
	LogicalTotal uint64 `json:"logical_total"`
	LogicalFree  uint64 `json:"logical_free"`
	// Limit is the configured capacity.limit, of user data; 0: none. Allocated is what counts
	// against it: all chunks, each once.
	Limit     uint64 `json:"limit,omitempty"`
	Allocated uint64 `json:"allocated"`
}

// ChunksDoc counts chunks. A member counts as present while its lease is valid. Degraded, below
// minimum, urgent and offline are each part of the one before, as far as policies allow.
type ChunksDoc struct {
	Total        uint64 `json:"total"`
	Healthy      uint64 `json:"healthy"`
	Degraded     uint64 `json:"degraded"`      // fewer live members than wanted
	BelowMinimum uint64 `json:"below_minimum"` // fewer than needed to write: writes wait
	Urgent       uint64 `json:"urgent"`        // one live member, of several wanted
	Offline      uint64 `json:"offline"`       // no live member: neither read nor written
	Fallback     uint64 `json:"fallback"`      // in a finer failure domain than asked for
	Recovering   uint64 `json:"recovering"`    // being copied to one more server
	Recovered    uint64 `json:"recovered"`     // copies completed since the leader of now began
}

// RecoveryDoc counts the degraded chunks by what becomes of them: each is in exactly one field.
type RecoveryDoc struct {
	Copying   uint64 `json:"copying"`   // being copied to one more server
	Queued    uint64 `json:"queued"`    // wait for their turn
	Again     uint64 `json:"again"`     // a copy failed; it is tried again in a moment
	NoPlace   uint64 `json:"no_place"`  // no other server that is online has room
	Waiting   uint64 `json:"waiting"`   // for a server that is away and may come back
	Excluding uint64 `json:"excluding"` // a member that is gone must be excluded first
	Offline   uint64 `json:"offline"`   // no live member: nothing to copy from
	Starting  uint64 `json:"starting"`  // the metadata server began to lead only just now
}

// Sum is the number of chunks counted.
func (d *RecoveryDoc) Sum() uint64 {
	return d.Copying + d.Queued + d.Again + d.NoPlace + d.Waiting + d.Excluding + d.Offline +
		d.Starting
}

// MovesDoc is about chunks that have all their copies and change servers.
type MovesDoc struct {
	Active    uint64  `json:"active"`    // under way
	Drain     uint64  `json:"drain"`     // of those: from servers that are being removed
	Mend      uint64  `json:"mend"`      // to get into different failure domains
	Balance   uint64  `json:"balance"`   // to even out how full the servers are
	Done      uint64  `json:"done"`      // since the leader of now began
	Paused    bool    `json:"paused"`    // rebalancing is switched off (rebalance=off)
	Balancing bool    `json:"balancing"` // servers aren't evenly full, and that is being mended
	Fullest   float64 `json:"fullest"`   // share of its space that the fullest server has allocated
	Emptiest  float64 `json:"emptiest"`
}

// DrainDoc is how far a server that is being removed is.
type DrainDoc struct {
	Left    uint64  `json:"left"`     // chunks that it still is a member of
	Moving  uint64  `json:"moving"`   // of those: under way
	NoPlace uint64  `json:"no_place"` // of those: no other server can take them
	Waiting uint64  `json:"waiting"`  // of those: must be recovered first
	Rate    float64 `json:"rate"`     // chunks per second, lately
	ETAMs   int64   `json:"eta_ms"`   // -1: not known
}

// MDSDoc is a metadata server.
type MDSDoc struct {
	ID     string `json:"id"`
	Addr   string `json:"addr"`
	Leader bool   `json:"leader"`
	Voter  bool   `json:"voter"`
	// Down: it doesn't answer the leader.
	Down bool `json:"down,omitempty"`
}

// AddMDSArgs is the address, "ip:port", of a metadata server that is being made.
type AddMDSArgs struct {
	Addr string `json:"addr"`
}

// AddMDSDoc is what a new metadata server needs. It becomes a member without a vote at once, and
// gets its vote when it has caught up.
type AddMDSDoc struct {
	Node     uint32          `json:"node"`
	Verifier json.RawMessage `json:"verifier,omitempty"` // of the cluster's password
	MDS      []MDSDoc        `json:"mds"`                // with the new one
}

// RemoveMDSArgs names a metadata server by its number.
type RemoveMDSArgs struct {
	Node  uint32 `json:"node"`
	Force bool   `json:"force"` // also when another one doesn't answer
}

// RemoveMDSDoc has what is left.
type RemoveMDSDoc struct {
	Removed MDSDoc   `json:"removed"`
	MDS     []MDSDoc `json:"mds"`
}

// CSDoc is a chunk server. Sizes are in bytes.
type CSDoc struct {
	ID         uint32    `json:"id"`
	Addr       string    `json:"addr"`
	Host       string    `json:"host"`
	Path       string    `json:"path"`
	Location   string    `json:"location,omitempty"`
	Tier       uint8     `json:"tier"`
	Status     string    `json:"status"`
	Reason     string    `json:"reason,omitempty"` // of the status, in words
	Failed     string    `json:"failed,omitempty"` // why, if the status is failed or refused
	Capacity   uint64    `json:"capacity"`
	Used       uint64    `json:"used"`
	Chunks     uint64    `json:"chunks"`
	SilentMs   int64     `json:"silent_ms"` // since its last heartbeat
	ReadRate   float64   `json:"read_rate"` // operations per second, lately
	WriteRate  float64   `json:"write_rate"`
	ReadSpeed  float64   `json:"read_speed"` // bytes per second, lately
	WriteSpeed float64   `json:"write_speed"`
	Stats      *CSStats  `json:"stats,omitempty"` // as last reported
	Drain      *DrainDoc `json:"drain,omitempty"` // of one that is releasing
}

// ServicesDoc lists all daemons that the cluster knows.
type ServicesDoc struct {
	MDS []MDSDoc `json:"mds"`
	CS  []CSDoc  `json:"cs"`
	// Refused are directories that don't say whose they are.
	Refused []RefusedDoc `json:"refused,omitempty"`
}

// RefusedDoc is a directory that the chunk server's process on its host refuses to serve.
type RefusedDoc struct {
	Host   string `json:"host"`
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// ClientsDoc lists the clients: mounts, block devices, programs that use the library.
type ClientsDoc struct {
	Clients []ClientDoc `json:"clients"`        // in the order of hosts
	More    uint64      `json:"more,omitempty"` // that many aren't listed
}

// ClientDoc is a client that is connected to the leading metadata server, or that isn't any more
// and still has the right to write files.
type ClientDoc struct {
	ID        string   `json:"id"` // hexadecimal, as revoke --client takes it
	Host      string   `json:"host"`
	Addr      string   `json:"addr,omitempty"` // of its connection to the metadata server
	Mounts    []string `json:"mounts"`         // where it has files open for writing, as it says
	Writes    uint64   `json:"writes"`         // files that it has the right to write
	Connected bool     `json:"connected"`
	AgeMs     int64    `json:"age_ms"`   // of the connection
	IdleMs    int64    `json:"idle_ms"`  // since its last request to the metadata server
	Requests  uint64   `json:"requests"` // to the metadata server, over this connection
}

// EventsArgs asks for events with an id above After, oldest first. Limit 0 means 100. With Last
// the newest Limit events are meant instead.
type EventsArgs struct {
	After uint64 `json:"after"`
	Limit int    `json:"limit"`
	Last  bool   `json:"last,omitempty"`
}

// EventsDoc has events, oldest first.
type EventsDoc struct {
	Events []EventDoc `json:"events"`
}

// EventDoc is one event.
type EventDoc struct {
	ID       uint64 `json:"id"`
	TimeNs   int64  `json:"time_ns"`
	Severity string `json:"severity"` // "info", "warning", "fault"
	Source   string `json:"source"`
	Code     string `json:"code"`
	Message  string `json:"message"`
}

// PathArgs names a file by its absolute path in the cluster.
type PathArgs struct {
	Path string `json:"path"`
}

// PolicyDoc is a Policy for people.
type PolicyDoc struct {
	Replicas      int    `json:"replicas"`
	Minimum       int    `json:"minimum"`
	FailureDomain string `json:"failure_domain"` // "disk", "host", "rack", "row", "room"
	Tier          int    `json:"tier"`
	WriteAck      string `json:"write_ack"` // "disk", "memory"
}

// AttrDoc are the attributes of a file or directory.
type AttrDoc struct {
	Path   string    `json:"path"`
	File   uint64    `json:"file"`
	Type   string    `json:"type"` // "file", "directory", "symlink"
	Size   uint64    `json:"size"`
	Chunks uint64    `json:"chunks"`
	Policy PolicyDoc `json:"policy"`
	// Usage is of a directory: what is in it and below.
	Usage *UsageDoc `json:"usage,omitempty"`
}

// UsageDoc is what a directory and all below it take.
type UsageDoc struct {
	Files     uint64 `json:"files"` // and symbolic links
	Dirs      uint64 `json:"directories"`
	Size      uint64 `json:"size"` // bytes, holes too
	Chunks    uint64 `json:"chunks"`
	Allocated uint64 `json:"allocated"` // bytes of user data that the chunks hold, each once
}

// SetAttrArgs changes the policy of a file or directory; what is nil stays. New chunks get the
// new policy; a directory hands it to what is created in it from now on.
type SetAttrArgs struct {
	Path          string  `json:"path"`
	Replicas      *int    `json:"replicas,omitempty"`
	Minimum       *int    `json:"minimum,omitempty"`
	FailureDomain *string `json:"failure_domain,omitempty"`
	Tier          *int    `json:"tier,omitempty"`
	WriteAck      *string `json:"write_ack,omitempty"`
	// Recursive: of everything below a directory too.
	Recursive bool `json:"recursive,omitempty"`
}

// FileInfoDoc is a file with its chunks (the first 1024).
type FileInfoDoc struct {
	AttrDoc
	List   []ChunkDoc `json:"list"`
	Writer *LeaseDoc  `json:"writer,omitempty"` // who has the right to write it
}

// ChunkDoc is a chunk for people.
type ChunkDoc struct {
	Index   uint32   `json:"index"`
	Chunk   string   `json:"chunk"`
	Epoch   uint32   `json:"epoch"`
	Created bool     `json:"created"`
	Members []uint32 `json:"members"` // the first is the head
	Live    []bool   `json:"live"`    // of each member
}

// ConfigDoc is the cluster's configuration.
type ConfigDoc struct {
	Entries []ConfigEntryDoc `json:"entries"`
}

// ConfigEntryDoc is one entry of the configuration.
type ConfigEntryDoc struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Version uint64 `json:"version"`
}

// SetConfigArgs changes an entry. Version must be what it is now (0: not there) unless Any is
// set. An empty value removes it.
type SetConfigArgs struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Version uint64 `json:"version"`
	Any     bool   `json:"any,omitempty"`
}

// RmCSArgs removes chunk servers from the cluster, all or none of them. Without Cancel or Force
// their chunks are moved to others first; each is dropped when it holds nothing. Cancel takes
// back such a removal. Force drops them at once; if that made the last available copy of a chunk
// unavailable it is refused, unless LoseData is set. Query changes nothing.
type RmCSArgs struct {
	CS       []uint32 `json:"cs"`
	Cancel   bool     `json:"cancel,omitempty"`
	Force    bool     `json:"force,omitempty"`
	LoseData bool     `json:"lose_data,omitempty"`
	Query    bool     `json:"query,omitempty"`
}

// RmCSDoc describes the servers named in RmCSArgs. Paused says why nothing is moved at all now.
type RmCSDoc struct {
	CS []CSDoc `json:"cs"`
}

// ScrubArgs names the chunk server whose scrubber shall begin a pass; 0: all.
type ScrubArgs struct {
	CS uint32 `json:"cs,omitempty"`
}

// ScrubDoc says which chunk servers were told to scrub. Those in Silent have no connection to the
// metadata servers at the moment.
type ScrubDoc struct {
	Told   []uint32 `json:"told"`
	Silent []uint32 `json:"silent"`
}
