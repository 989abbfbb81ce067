package mds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// server answers requests. Only the leader does; others say where it is.
type server struct {
	r    *replica
	log  *slog.Logger
	lead atomic.Pointer[leader] // nil: not the leader, or not ready yet
	id   *identity              // of this server; nil in simulations
	cred *session.Credentials   // nil in simulations
	// relays is how many connections are being passed on to the leader.
	relays atomic.Int32
	newest newest
}

var _ control.Handler = (*server)(nil)

// call is one request being answered.
type call struct {
	*server
	ctx  context.Context
	l    *leader
	peer *control.Peer
	from origin
	op   dataplane.Opcode
}

// anonymous is the origin of requests from peers without an id. Their request ids, random in the
// upper half, tell them apart well enough.
const anonymous = 1<<64 - 1

// handler is how an op is answered, and for whom.
type handler struct {
	roles  uint8 // bits: 1<<role
	handle func(c *call, payload []byte) (any, error)
}

const (
	forClients = 1<<dataplane.RoleClient | 1<<dataplane.RoleAdmin
	forCS      = 1 << dataplane.RoleCS
	forHosts   = 1<<dataplane.RoleSupervisor | 1<<dataplane.RoleAdmin
	forAll     = forClients | forCS | forHosts
)

// on makes a handler of a function that takes the decoded message.
func on[T any](roles int, f func(c *call, req *T) (any, error)) handler {
	return handler{uint8(roles), func(c *call, payload []byte) (any, error) {
		req := new(T)
		if err := control.Unmarshal(payload, req); err != nil {
			return nil, err
		}
		return f(c, req)
	}}
}

// handlers is the table of all requests.
var handlers = map[dataplane.Opcode]handler{
	control.OpLookup:        on(forClients, (*call).lookup),
	control.OpGetAttr:       on(forClients, (*call).getAttr),
	control.OpSetAttr:       on(forClients, (*call).setAttr),
	control.OpCreate:        on(forClients, (*call).create),
	control.OpUnlink:        on(forClients, (*call).unlink),
	control.OpRename:        on(forClients, (*call).rename),
	control.OpReadDir:       on(forClients, (*call).readDir),
	control.OpGrow:          on(forClients, (*call).grow),
	control.OpGetMap:        on(forClients, (*call).getMap),
	control.OpAllocate:      on(forClients, (*call).allocate),
	control.OpWatchMaps:     on(forClients, (*call).watchMaps),
	control.OpStatFS:        on(forClients, (*call).statFS),
	control.OpGetXattr:      on(forClients, (*call).getXattr),
	control.OpSetXattr:      on(forClients, (*call).setXattr),
	control.OpListXattr:     on(forClients, (*call).listXattr),
	control.OpAcquireLease:  on(forClients, (*call).acquireLease),
	control.OpReleaseLeases: on(forClients, (*call).releaseLeases),
	control.OpRenewLeases:   on(forClients, (*call).renewLeases),
	control.OpRegisterCS:    on(forCS, (*call).registerCS),
	control.OpHeartbeat:     on(forCS, (*call).heartbeat),
	control.OpGetChunk:      on(forCS|forClients, (*call).getChunk),
	control.OpReconfigure:   on(forCS, (*call).reconfigure),
	control.OpUnreachable:   on(forCS|forClients, (*call).unreachable),
	control.OpExited:        on(forHosts, (*call).exited),
	control.OpAddEvent:      on(forAll, (*call).addEvent),
	control.OpMDSReady:      on(1<<dataplane.RoleMDS, (*call).mdsReady),
	control.OpMDSList:       on(forAll, (*call).mdsList),
	control.OpInventory:     on(forCS, (*call).inventoryPart),
	control.OpRefused:       on(forHosts, (*call).refused),
	control.OpKeys:          on(forAll, (*call).keysRequest),
	control.OpRenewKey:      on(forAll, (*call).renewKey),
	control.OpGrantNode:     on(1<<dataplane.RoleMDS, (*call).grantNode),
	control.OpAdmin:         on(forClients, (*call).admin),
}

// Handle implements control.Handler.
func (s *server) Handle(ctx context.Context, peer *control.Peer, reqID uint64,
	op dataplane.Opcode, payload []byte) (any, error) {
	h, ok := handlers[op]
	if !ok {
		return nil, dataplane.E(fmt.Sprintf("operation %d", op), dataplane.NotSupported, nil)
	}
	if h.roles&(1<<peer.Role) == 0 {
		return nil, dataplane.E(control.OpName(op), dataplane.Denied,
			fmt.Errorf("not for a peer of role %v", peer.Role))
	}
	return s.handleBy(ctx, s.lead.Load(), h, peer, reqID, op, payload)
}

// handleBy is the rest of Handle: what the leadership l, that of the moment when the request came,
// answers. It may be over by now.
func (s *server) handleBy(ctx context.Context, l *leader, h handler, peer *control.Peer,
	reqID uint64, op dataplane.Opcode, payload []byte) (any, error) {
	if l == nil {
		return nil, s.r.notLeader()
	}
	l.clients.note(peer, op, l)
	from := origin{peer.ID, reqID}
	if from.Peer == 0 {
		from.Peer = anonymous
	}
	return h.handle(&call{server: s, ctx: ctx, l: l, peer: peer, from: from, op: op}, payload)
}

// Gone implements control.Handler.
func (s *server) Gone(peer *control.Peer) {
	if l := s.lead.Load(); l != nil {
		l.keepers.gone(peer)
		l.clients.gone(peer)
		l.watch.gone(peer)
		l.gone(peer)
	}
}

// name is what the request is called in errors.
func (c *call) name() string { return control.OpName(c.op) }

// fail makes the request's error.
func (c *call) fail(kind dataplane.Kind, format string, args ...any) error {
	return dataplane.E(c.name(), kind, fmt.Errorf(format, args...))
}

// read calls f with the state, after everything that anybody was told of before the request came.
func (c *call) read(f func(s *State) error) error {
	if err := c.l.valid(c.ctx); err != nil {
		return err
	}
	c.r.fsm.mu.RLock()
	defer c.r.fsm.mu.RUnlock()
	if c.r.fsm.failed != nil {
		return c.r.fsm.failed
	}
	return f(c.r.fsm.s)
}

// change sends a command through the log. A lost connection doesn't take it back, and chunk servers
// must be told what it freed, so the wait is only for the end of the leadership: the next leader
// looks for itself.
func (c *call) change(cmd command) (Result, error) {
	res, err := c.r.propose(c.l.ctx, cmd)
	if err != nil {
		return res, err
	}
	c.l.forget(res.Freed)
	return res, res.err(c.name())
}

// changeAttr is change for requests that are answered with attributes.
func (c *call) changeAttr(cmd command) (any, error) {
	res, err := c.change(cmd)
	if err != nil {
		return nil, err
	}
	return &res.Attr, nil
}

func (c *call) lookup(req *control.LookupReq) (any, error) {
	var a control.Attr
	err := c.read(func(s *State) error {
		var r Result
		dir := s.parentDir(req.Parent, &r)
		if dir == nil {
			return r.err(c.name())
		}
		id := dir.dir.find(req.Name)
		if id == 0 {
			return dataplane.E(c.name(), dataplane.NotFound, nil)
		}
		a = s.attr(s.files.get(id))
		return nil
	})
	return &a, err
}

// withFile calls f with a file that has a name.
func (c *call) withFile(id dataplane.FileID, f func(s *State, file *file) error) error {
	return c.read(func(s *State) error {
		file := s.live(id)
		if file == nil {
			return c.fail(dataplane.NotFound, "file %d", id)
		}
		return f(s, file)
	})
}

func (c *call) getAttr(req *control.FileReq) (any, error) {
	var a control.Attr
	err := c.withFile(req.File, func(s *State, f *file) error {
		a = s.attr(f)
		return nil
	})
	return &a, err
}

func (c *call) setAttr(req *control.SetAttrReq) (any, error) {
	token := req.Token
	if req.Mask&control.SetSize == 0 {
		token = 0
	}
	for {
		if err := c.mayResize(req.File, token); err != nil {
			return nil, err
		}
		res, err := c.change(&cmdSetAttr{c.from, *req})
		if err != nil {
			return nil, err
		}
		if !res.More {
			return &res.Attr, nil
		}
		if c.ctx.Err() != nil { // nobody wants the rest, and others may write the file by now
			return nil, c.r.gaveUp(c.ctx, c.name())
		}
	}
}

func (c *call) create(req *control.CreateReq) (any, error) {
	return c.changeAttr(&cmdCreate{c.from, *req})
}

func (c *call) unlink(req *control.UnlinkReq) (any, error) {
	_, err := c.change(&cmdUnlink{c.from, *req})
	return nil, err
}

func (c *call) rename(req *control.RenameReq) (any, error) {
	_, err := c.change(&cmdRename{c.from, *req})
	return nil, err
}

func (c *call) grow(req *control.GrowReq) (any, error) {
	if err := c.mayResize(req.File, req.Token); err != nil {
		return nil, err
	}
	return c.changeAttr(&cmdGrow{GrowReq: *req})
}

// Bounds of one ReadDirReply; the frame holds 1 MiB.
const (
	maxReadDir      = 4096
	maxReadDirBytes = 768 << 10
	dirEntryBytes   = 128 // of an entry besides its name and target
)

func (c *call) readDir(req *control.ReadDirReq) (any, error) {
	limit := int(min(req.Max, maxReadDir))
	if limit == 0 {
		limit = maxReadDir
	}
	reply := &control.ReadDirReply{}
	err := c.read(func(s *State) error {
		var r Result
		dir := s.parentDir(req.Dir, &r)
		if dir == nil {
			return r.err(c.name())
		}
		reply.Entries = make([]control.DirEntry, 0, min(limit, dir.dir.n))
		bytes := 0
		dir.dir.after(req.After, func(e *dirEntry) bool {
			f := s.files.get(e.id)
			bytes += dirEntryBytes + len(f.name) + len(f.target)
			if len(reply.Entries) == limit || bytes > maxReadDirBytes {
				reply.More = true
				return false
			}
			reply.Entries = append(reply.Entries, control.DirEntry{Name: e.name, Attr: s.attr(f)})
			return true
		})
		return nil
	})
	return reply, err
}

// checkRange says what is wrong with a range of chunks.
func (c *call) checkRange(req *control.MapReq) error {
	if req.Count == 0 || req.Count > control.MaxMapRange || req.First >= MaxFileChunks ||
		req.Count > MaxFileChunks-req.First {
		return c.fail(dataplane.Invalid, "chunks %d+%d: 1 to %d of them, below %d", req.First,
			req.Count, control.MaxMapRange, MaxFileChunks)
	}
	return nil
}

func (c *call) getMap(req *control.MapReq) (any, error) {
	if err := c.checkRange(req); err != nil {
		return nil, err
	}
	c.watchMap(req)
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	return c.chunkMap(req)
}

func (c *call) allocate(req *control.MapReq) (any, error) {
	if err := c.checkRange(req); err != nil {
		return nil, err
	}
	c.watchMap(req)
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	if err := c.l.allocate(*req); err != nil {
		return nil, err
	}
	return c.chunkMap(req)
}

// chunkMap describes the chunks of a range that exist.
func (c *call) chunkMap(req *control.MapReq) (any, error) {
	l, f := c.l, c.r.fsm
	l.mu.Lock()
	defer l.mu.Unlock()
	f.mu.RLock()
	defer f.mu.RUnlock()
	file := f.s.live(req.File)
	if file == nil {
		return nil, c.fail(dataplane.NotFound, "file %d", req.File)
	}
	reply := &control.MapReply{}
	now := l.now()
	// All chunks' members are one piece of memory.
	members := make([]dataplane.CSID, 0, min(req.Count, file.chunks)*uint32(file.policy.Replicas))
	reply.Chunks = make([]control.ChunkMap, 0, min(req.Count, file.chunks))
	l.replies++
	for i := req.First; i < req.First+req.Count; i++ {
		slot := file.slots.get(i)
		if slot == 0 {
			continue
		}
		rec := f.s.table.At(uint64(slot - 1))
		from := len(members)
		for _, m := range rec.members() {
			members = append(members, m.CS)
			if l.firstNamed(m.CS) {
				reply.Servers = append(reply.Servers, l.addr(f.s, m.CS, now))
			}
		}
		reply.Chunks = append(reply.Chunks, control.ChunkMap{Index: i, Chunk: rec.ID,
			Epoch: rec.Epoch, Members: members[from:len(members):len(members)]})
	}
	return reply, nil
}

// firstNamed says whether a server wasn't named before in the reply with the number l.replies. mu
// is held.
func (l *leader) firstNamed(cs dataplane.CSID) bool {
	for int(cs) >= len(l.named) {
		l.named = append(l.named, 0)
	}
	first := l.named[cs] != l.replies
	l.named[cs] = l.replies
	return first
}

func (c *call) statFS(*control.Empty) (any, error) {
	reply := &control.StatFSReply{}
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	f := c.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	space := c.l.space(f.s)
	reply.Total, reply.Free = space.LogicalTotal, space.LogicalFree
	reply.Files = f.s.fileCount()
	return reply, nil
}

func (c *call) getXattr(req *control.XattrReq) (any, error) {
	reply := &control.XattrReply{}
	err := c.withFile(req.File, func(_ *State, f *file) error {
		i, found := findXattr(f, req.Name)
		if !found {
			return c.fail(dataplane.NoAttribute, "%.80q", req.Name)
		}
		reply.Value = f.xattrs[i].value
		return nil
	})
	return reply, err
}

func (c *call) setXattr(req *control.XattrReq) (any, error) {
	_, err := c.change(&cmdSetXattr{c.from, *req})
	return nil, err
}

func (c *call) listXattr(req *control.FileReq) (any, error) {
	reply := &control.XattrReply{}
	err := c.withFile(req.File, func(_ *State, f *file) error {
		for _, x := range f.xattrs {
			reply.Value = append(append(reply.Value, x.name...), 0)
		}
		return nil
	})
	return reply, err
}

func (c *call) addEvent(req *control.Event) (any, error) {
	if req.Severity > control.Fault || req.Code == "" {
		return nil, dataplane.E(c.name(), dataplane.Invalid,
			errors.New("an event has a severity of 0 to 2 and a code"))
	}
	_, err := c.change(&cmdAddEvent{origin: c.from, Severity: req.Severity, Source: req.Source,
		Code: req.Code, Message: req.Message})
	return nil, err
}
