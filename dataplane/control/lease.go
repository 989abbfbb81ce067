package control

import "pstorage/dataplane"

// File leases: one client at a time may write a file. Each grant has a token, larger than all
// before; a client's writes carry it (Header.Seq), and chunk servers refuse those with a token
// below the file's fence. A fence is raised, and known to every chunk server that may serve,
// before a file goes from a client that didn't release it in good order to another one.

// AcquireLeaseReq asks for the right to write a file, on behalf of the client that asks. Host and
// Mount say for people who that is.
type AcquireLeaseReq struct {
	File        dataplane.FileID
	Token       uint64 // of the grant that a reply called fencing; 0: a new question
	Host, Mount string
}

// LeaseReply is the outcome: granted, to be asked for again in a moment (Fencing: it is ours, but
// the holder before may still write), or held by another client.
type LeaseReply struct {
	Granted, Fencing        bool
	Token                   uint64
	Holder                  dataplane.ClientID // not granted and not fencing: who has it
	HolderHost, HolderMount string
}

// FileLease names a grant.
type FileLease struct {
	File  dataplane.FileID
	Token uint64
	// Unclean, in a release: a write may still be on its way, so the next holder needs a fence.
	Unclean bool
}

// ReleaseLeasesReq gives leases back. Those that the client doesn't hold are skipped.
type ReleaseLeasesReq struct{ Leases []FileLease }

// RenewLeasesReq says that the client lives; every MaxRenew leases need a message of their own.
type RenewLeasesReq struct{ Leases []FileLease }

// MaxRenew is the most leases in one ReleaseLeasesReq or RenewLeasesReq.
const MaxRenew = 16 << 10

// RenewLeasesReply names those of the leases that the client doesn't hold any more.
type RenewLeasesReply struct{ Lost []LostLease }

// LostLease is a lease that was taken away, and by whom, for people.
type LostLease struct {
	File  dataplane.FileID
	Token uint64
	By    string
}

// FileFence: writes of File with a token below Token are refused.
type FileFence struct {
	File  dataplane.FileID
	Token uint64
}

// FencePush has the fences with numbers above After, up to Seq. It means something only to a
// receiver that has those up to After. More: there are others above Seq.
type FencePush struct {
	After, Seq uint64
	Fences     []FileFence
	More       bool
}

// MaxFences is the most fences in one FencePush.
const MaxFences = 16 << 10

// The commands of AdminReq that are about leases.
const (
	AdminRevoke     = "revoke"      // RevokeArgs -> RevokeDoc
	AdminRevokeWait = "revoke-wait" // RevokeWaitArgs -> RevokeDoc
)

// RevokeArgs says which leases are taken away: of the file at Path (with Recursive: of all files
// below it), or with All of all files; of Client only, if it isn't zero.
type RevokeArgs struct {
	Path      string `json:"path"`
	Recursive bool   `json:"recursive"`
	Client    uint64 `json:"client"`
	All       bool   `json:"all"`
	By        string `json:"by"`    // who revokes, for people: "root@host1"
	After     uint64 `json:"after"` // go on behind this file id, as RevokeDoc.Next said
}

// RevokeWaitArgs asks whether everything up to Seq is in force.
type RevokeWaitArgs struct {
	Seq uint64 `json:"seq"`
}

// RevokeDoc says what was revoked. It is in force when Waiting is empty.
type RevokeDoc struct {
	Revoked []LeaseDoc `json:"revoked"`
	Free    uint64     `json:"free"` // files that nobody held
	Seq     uint64     `json:"seq"`  // for RevokeWaitArgs
	Next    uint64     `json:"next"` // not zero: there are more files, behind this one
	Waiting []uint32   `json:"waiting"`
}

// LeaseDoc is who may write a file.
type LeaseDoc struct {
	File    uint64 `json:"file"`
	Path    string `json:"path"`
	Client  uint64 `json:"client"`
	Host    string `json:"host"`
	Mount   string `json:"mount"`
	SinceNs int64  `json:"since_ns"` // since 1970
	// SilentMs is for how long the client didn't renew its leases; at LeaseMs others may have them.
	SilentMs int64 `json:"silent_ms"`
	LeaseMs  int64 `json:"lease_ms"`
}
