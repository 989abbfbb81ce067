package mds

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// defaultOffline is how long a chunk server may be silent before it counts as offline and its
// chunks are copied to others.
const defaultOffline = 300 * time.Second

func (r *replica) offlineTimeout() time.Duration {
	if r.offline > 0 {
		return r.offline
	}
	return defaultOffline
}

// admin answers a command with a JSON document.
func (c *call) admin(req *control.AdminReq) (any, error) {
	changes := req.Command == control.AdminSetAttr || req.Command == control.AdminSetConfig ||
		req.Command == control.AdminScrubStart ||
		req.Command == control.AdminAddMDS || req.Command == control.AdminRemoveMDS ||
		req.Command == control.AdminRmCS || req.Command == control.AdminRevoke ||
		req.Command == control.AdminRotateKeys || req.Command == control.AdminRevokeNode
	if changes && c.peer.Role != dataplane.RoleAdmin {
		return nil, c.fail(dataplane.Denied, "%s is for administrators, not for a peer of role %v",
			req.Command, c.peer.Role)
	}
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	doc, err := c.adminDoc(req)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, dataplane.E("admin command "+req.Command, dataplane.Internal, err)
	}
	reply := &control.AdminReply{Doc: b}
	if req.Packs {
		reply.Pack()
	}
	return reply, nil
}

func (c *call) adminDoc(req *control.AdminReq) (any, error) {
	switch req.Command {
	case control.AdminStat:
		return c.l.stat(), nil
	case control.AdminListServices:
		return c.l.services(), nil
	case control.AdminListClients:
		return c.clientDocs()
	case control.AdminEvents:
		return withArgs(req, c.events)
	case control.AdminFileInfo:
		return withArgs(req, c.fileInfo)
	case control.AdminGetAttr:
		return withArgs(req, c.getPolicy)
	case control.AdminSetAttr:
		return withArgs(req, c.setPolicy)
	case control.AdminGetConfig:
		return c.configDoc(), nil
	case control.AdminSetConfig:
		return withArgs(req, c.setConfig)
	case control.AdminRmCS:
		return withArgs(req, c.rmCS)
	case control.AdminRevoke:
		return withArgs(req, c.revoke)
	case control.AdminRevokeWait:
		return withArgs(req, c.revokeWait)
	case control.AdminScrubStart:
		return withArgs(req, c.scrubStart)
	case control.AdminRotateKeys:
		return withArgs(req, c.rotateKeys)
	case control.AdminRevokeNode:
		return withArgs(req, c.revokeNode)
	case control.AdminAdoptCS:
		return withArgs(req, c.adoptCS)
	case control.AdminListKeys:
		return c.keysDoc()
	case control.AdminAddMDS:
		return withArgs(req, c.addMDS)
	case control.AdminRemoveMDS:
		return withArgs(req, c.removeMDS)
	}
	return nil, c.fail(dataplane.NotSupported, "command %.80q is unknown", req.Command)
}

// withArgs decodes the arguments of a command.
func withArgs[T any](req *control.AdminReq, f func(args *T) (any, error)) (any, error) {
	args := new(T)
	if len(req.Args) > 0 {
		if err := json.Unmarshal(req.Args, args); err != nil {
			return nil, dataplane.E("arguments of "+req.Command, dataplane.Invalid, err)
		}
	}
	return f(args)
}

// fileCount returns how many names there are in the namespace.
func (s *State) fileCount() uint64 {
	return uint64(len(s.files.byID) - len(s.orphans) - 1)
}

// space adds up the chunk servers that aren't dropped. Both locks are held.
func (l *leader) space(s *State) control.SpaceDoc {
	var d control.SpaceDoc
	for _, c := range s.cs {
		if c == nil || c.Dropped || c.Failed != "" {
			continue
		}
		size, free := l.capacityOf(s, c)
		d.Total += size
		d.Free += free
	}
	d.Used = d.Total - d.Free
	copies := uint64(s.files.get(dataplane.RootID).policy.Replicas)
	d.LogicalTotal, d.LogicalFree = d.Total/copies, d.Free/copies
	d.Allocated = s.table.Len() * dataplane.ChunkSize
	l.configure(s)
	if d.Limit = l.conf.limit; d.Limit != 0 {
		left := d.Limit - min(d.Limit, d.Allocated)
		d.LogicalTotal, d.LogicalFree = min(d.LogicalTotal, d.Limit), min(d.LogicalFree, left)
	}
	return d
}

// csDoc describes a chunk server. Both locks are held.
func (l *leader) csDoc(s *State, c *CS, nowNs int64) control.CSDoc {
	silent := time.Duration(nowNs - l.leases.at(c.ID).answeredNs)
	size, free := l.capacityOf(s, c)
	d := control.CSDoc{ID: uint32(c.ID), Addr: c.Addr, Host: c.Host, Path: c.Path,
		Location: c.Location, Tier: c.Tier, Failed: c.Failed, Capacity: size, Used: size - free,
		Chunks: uint64(s.csLoad[c.ID]), SilentMs: silent.Milliseconds()}
	if k := l.cs[c.ID]; k != nil && k.statsNs != 0 {
		stats := k.stats
		d.Stats = &stats
		d.ReadRate, d.WriteRate = k.rates.reads, k.rates.writes
		d.ReadSpeed, d.WriteSpeed = k.rates.readBytes, k.rates.writeBytes
	}
	f := l.csFacts(c, nowNs)
	d.Status = csCase(f)
	d.Reason = l.csReason(s, c, d.Status, f)
	away := d.Status == control.CSInactive || d.Status == control.CSOffline
	if why := l.refusalOf(c.ID, nowNs); away && why != "" {
		d.Status, d.Failed, d.Reason = control.CSRefused, why, why
	}
	if d.Status == control.CSReleasing {
		d.Drain = l.drainDoc(s, c.ID)
	}
	return d
}

// services lists the daemons.
func (l *leader) services() *control.ServicesDoc {
	d := &control.ServicesDoc{MDS: l.r.servers(), CS: []control.CSDoc{}}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	now := l.now()
	for _, c := range f.s.cs {
		if c != nil {
			d.CS = append(d.CS, l.csDoc(f.s, c, now))
		}
	}
	d.Refused = l.homeless(now)
	return d
}

// servers lists the metadata servers.
func (r *replica) servers() []control.MDSDoc {
	list := []control.MDSDoc{}
	if r.sim != nil {
		return list
	}
	_, leader := r.raft.LeaderWithID()
	for _, s := range r.raft.GetConfiguration().Configuration().Servers {
		list = append(list, control.MDSDoc{ID: string(s.ID), Addr: string(s.Address),
			Leader: s.ID == leader, Voter: s.Suffrage == raft.Voter,
			Down: r.down.has(s.ID, time.Now())})
	}
	return list
}

// stat describes the cluster.
func (l *leader) stat() *control.StatDoc {
	services := l.services()
	d := &control.StatDoc{MDS: services.MDS, CS: services.CS, TimeNs: time.Now().UnixNano()}
	f := l.r.fsm
	l.mu.Lock()
	f.mu.RLock()
	d.Cluster, d.ClusterID = f.s.clusterName, f.s.clusterID.String()
	d.Space, d.Files = l.space(f.s), f.s.fileCount()
	slots := f.s.table.Slots()
	census := l.census(f.s)
	full, behind := l.fullReason(), l.behind
	offline, failed := l.recover.offline, l.recover.stats.failed
	l.movesDoc(d)
	f.mu.RUnlock()
	l.mu.Unlock()
	l.scan(slots, func(_ *State, rec *Record) { census.count(d, rec) })
	d.Health, d.Reasons = health(d)
	recoveryReasons(d, offline, failed)
	moveReasons(d)
	if full != "" {
		d.Health, d.Reasons = "critical", append([]string{full}, d.Reasons...)
	}
	if behind != "" {
		d.Health, d.Reasons = "critical", append([]string{behind}, d.Reasons...)
	}
	return d
}

// health sums a stat document up, in words.
func health(d *control.StatDoc) (string, []string) {
	status, reasons := "healthy", []string{}
	say := func(to string, n uint64, format string) {
		if n == 0 {
			return
		}
		if status != "critical" {
			status = to
		}
		reasons = append(reasons, fmt.Sprintf(format, n))
	}
	silent, failed, refused, ill := uint64(0), uint64(0), uint64(0), uint64(0)
	for _, c := range d.CS {
		switch c.Status {
		case control.CSInactive, control.CSOffline:
			silent++
		case control.CSFailed:
			failed++
		case control.CSRefused:
			refused++
		case control.CSIll:
			ill++
		}
	}
	say("critical", d.Chunks.Offline, "%d chunks have no live member: they can't be read")
	say("critical", d.Chunks.BelowMinimum, "%d chunks have fewer members than needed to write")
	say("degraded", d.Chunks.Urgent, "%d chunks have only one live member")
	say("degraded", d.Chunks.Degraded, "%d chunks have fewer live members than wanted")
	say("degraded", failed, "%d chunk servers have a failed disk")
	say("degraded", refused, "%d chunk servers refuse to serve their directory (list-services "+
		"says why)")
	say("degraded", silent, "%d chunk servers don't answer")
	say("degraded", ill, "%d chunk servers are much slower than the others")
	down, voters := uint64(0), 0
	for _, m := range d.MDS {
		if m.Down {
			down++
		}
		if m.Voter {
			voters++
		}
	}
	say("degraded", down, "%d metadata servers don't answer")
	if why := VoterWarning(voters); why != "" {
		reasons = append(reasons, why)
	}
	if d.Chunks.Fallback > 0 {
		// It is as safe as the hardware allows; a word, no alarm.
		reasons = append(reasons, fmt.Sprintf("%d chunks share a failure domain, because there "+
			"are too few domains", d.Chunks.Fallback))
	}
	if len(d.CS) == 0 {
		reasons = append(reasons, "there are no chunk servers yet")
	}
	return status, reasons
}

// maxEventsReply bounds an EventsDoc.
const maxEventsReply = 1000

// eventBytes is about what an event takes in a reply.
func eventBytes(e *control.Event) int {
	return len(e.Message) + len(e.Source) + len(e.Code) + 200
}

func (c *call) events(args *control.EventsArgs) (any, error) {
	limit := args.Limit
	if limit <= 0 {
		limit = 100
	}
	limit = min(limit, maxEventsReply)
	doc := &control.EventsDoc{Events: []control.EventDoc{}}
	f := c.r.fsm
	f.mu.RLock()
	q := f.s.events.capture()
	f.mu.RUnlock()
	skip := 0
	if args.Last {
		skip = max(0, q.n-limit)
		bytes := 0 // of all but the first skip ones
		var sizes []int
		i := 0
		q.each(func(e *control.Event) bool {
			if i++; i > skip {
				sizes = append(sizes, eventBytes(e))
				bytes += eventBytes(e)
			}
			return true
		})
		for ; bytes > maxReadDirBytes/2; skip++ { // the newest are what is asked for
			bytes, sizes = bytes-sizes[0], sizes[1:]
		}
	}
	bytes := 0
	q.each(func(e *control.Event) bool {
		if skip > 0 {
			skip--
			return true
		}
		if e.ID <= args.After {
			return true
		}
		bytes += eventBytes(e)
		if len(doc.Events) == limit || bytes > maxReadDirBytes/2 {
			return false
		}
		names := [...]string{"info", "warning", "fault"}
		sev := fmt.Sprintf("severity %d", e.Severity)
		if int(e.Severity) < len(names) {
			sev = names[e.Severity]
		}
		doc.Events = append(doc.Events, control.EventDoc{ID: e.ID, TimeNs: e.TimeNs,
			Severity: sev, Source: e.Source, Code: e.Code, Message: e.Message})
		return true
	})
	return doc, nil
}

func (c *call) configDoc() *control.ConfigDoc {
	doc := &control.ConfigDoc{Entries: []control.ConfigEntryDoc{}}
	f := c.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, e := range f.s.config {
		if strings.HasPrefix(e.key, keyPrefix) {
			continue // secrets
		}
		doc.Entries = append(doc.Entries, control.ConfigEntryDoc{Key: e.key, Value: e.value,
			Version: e.version})
	}
	return doc
}

func (c *call) setConfig(args *control.SetConfigArgs) (any, error) {
	if err := checkConfig(args.Key, args.Value, c.configured(args.Key)); err != nil {
		return nil, c.fail(dataplane.Invalid, "%v", err)
	}
	if args.Key == control.ConfigMode && args.Value == "" {
		args.Value = modeCRC // nodes only take over what has a newer version, so the entry stays
	}
	_, err := c.change(&cmdSetConfig{origin: c.from, Key: args.Key, Value: args.Value,
		Version: args.Version, Any: args.Any})
	if err != nil {
		return nil, err
	}
	return c.configDoc(), nil
}

// configured says whether the configuration has that key.
func (c *call) configured(key string) bool {
	f := c.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	return slices.ContainsFunc(f.s.config, func(e configEntry) bool { return e.key == key })
}

// scrubStart has one chunk server, or all, begin a pass over its store.
func (c *call) scrubStart(args *control.ScrubArgs) (any, error) {
	l, f := c.l, c.r.fsm
	doc := &control.ScrubDoc{Told: []uint32{}, Silent: []uint32{}}
	l.mu.Lock()
	defer l.mu.Unlock()
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, cs := range f.s.cs {
		if cs == nil || cs.Dropped || args.CS != 0 && args.CS != uint32(cs.ID) {
			continue
		}
		if cs.Failed == "" && l.push(cs.ID, control.OpScrub, &control.ScrubPush{}) {
			doc.Told = append(doc.Told, uint32(cs.ID))
		} else {
			doc.Silent = append(doc.Silent, uint32(cs.ID))
		}
	}
	switch {
	case args.CS != 0 && len(doc.Told)+len(doc.Silent) == 0:
		return nil, c.fail(dataplane.NotFound, "CS %d", args.CS)
	case args.CS != 0 && len(doc.Told) == 0:
		return nil, c.fail(dataplane.Unreachable, "CS %d isn't connected, or its disk failed", args.CS)
	}
	return doc, nil
}
