package control

import (
	"fmt"

	"pstorage/dataplane"
)

// opRow is what an opcode is called and which messages go with it.
type opRow struct {
	op         dataplane.Opcode
	name       string
	req, reply any // zero values; reply is nil for a push
}

// ops is the table of all control opcodes.
var ops = [...]opRow{
	{OpLookup, "lookup", LookupReq{}, Attr{}},
	{OpGetAttr, "get attributes", FileReq{}, Attr{}},
	{OpSetAttr, "set attributes", SetAttrReq{}, Attr{}},
	{OpCreate, "create", CreateReq{}, Attr{}},
	{OpUnlink, "unlink", UnlinkReq{}, Empty{}},
	{OpRename, "rename", RenameReq{}, Empty{}},
	{OpReadDir, "read directory", ReadDirReq{}, ReadDirReply{}},
	{OpGrow, "grow", GrowReq{}, Attr{}},
	{OpGetMap, "get chunk map", MapReq{}, MapReply{}},
	{OpAllocate, "allocate chunks", MapReq{}, MapReply{}},
	{OpWatchMaps, "watch chunk maps", WatchMapsReq{}, Empty{}},
	{OpStatFS, "stat file system", Empty{}, StatFSReply{}},
	{OpGetXattr, "get extended attribute", XattrReq{}, XattrReply{}},
	{OpSetXattr, "set extended attribute", XattrReq{}, Empty{}},
	{OpListXattr, "list extended attributes", FileReq{}, XattrReply{}},

	{OpAcquireLease, "acquire a write lease", AcquireLeaseReq{}, LeaseReply{}},
	{OpReleaseLeases, "release write leases", ReleaseLeasesReq{}, Empty{}},
	{OpRenewLeases, "renew write leases", RenewLeasesReq{}, RenewLeasesReply{}},

	{OpRegisterCS, "register chunk server", RegisterCSReq{}, RegisterCSReply{}},
	{OpHeartbeat, "heartbeat", HeartbeatReq{}, HeartbeatReply{}},
	{OpGetChunk, "get chunk", GetChunkReq{}, ChunkConfig{}},
	{OpReconfigure, "reconfigure chunk", ReconfigureReq{}, ChunkConfig{}},
	{OpUnreachable, "report unreachable chunk server", UnreachableReq{}, Empty{}},
	{OpExited, "report exited chunk server", ExitedReq{}, Empty{}},
	{OpAddEvent, "add event", Event{}, Empty{}},
	{OpInventory, "list chunks", InventoryReq{}, Empty{}},
	{OpRefused, "report refused chunk server", RefusedReq{}, Empty{}},

	{OpSettle, "settle", SettlePush{}, nil},
	{OpForget, "forget", ForgetPush{}, nil},
	{OpRecover, "recover", RecoverPush{}, nil},
	{OpMDSReady, "metadata server ready", MDSReadyReq{}, MDSReadyReply{}},
	{OpMDSList, "list metadata servers", Empty{}, MDSListReply{}},
	{OpKeys, "keys", KeysReq{}, KeysReply{}},
	{OpRenewKey, "renew this node's key", RenewKeyReq{}, RenewKeyReply{}},
	{OpGrantNode, "make a node", GrantNodeReq{}, KeysReply{}},
	{OpScrub, "scrub", ScrubPush{}, nil},
	{OpFence, "fence", FencePush{}, nil},
	{OpMapChanged, "chunk map changed", MapPush{}, nil},

	{OpAdmin, "admin command", AdminReq{}, AdminReply{}},
}

var opNames = func() (names [256]string) {
	names[dataplane.OpPing] = "ping"
	for _, r := range ops {
		names[r.op] = r.name
	}
	return names
}()

// OpName is what op is called in errors and logs.
func OpName(op dataplane.Opcode) string {
	if s := opNames[op]; s != "" {
		return s
	}
	return fmt.Sprintf("operation %d", op)
}
