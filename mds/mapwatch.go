package mds

import (
	"cmp"
	"slices"
	"sync"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// Limits of a leader's memory of who is to be told of changed chunk maps. Beyond them somebody
// isn't told, and finds out by itself.
const (
	maxFileWatchers = 64      // connections that watch one file
	maxWatches      = 1 << 20 // of all connections
	maxMapChanges   = 1024    // that wait for one connection
)

// mapWatch is which clients want to know of changes of which files' chunk maps. It is soft state of
// a leader, and nothing depends on it. Its methods may be called by any goroutine.
type mapWatch struct {
	mu      sync.Mutex // guards what follows; taken after leader.mu
	peers   map[*control.Peer]*mapWatcher
	files   map[dataplane.FileID][]*mapWatcher
	watches int
	due     []*mapWatcher // those with changes, in the order of their first ones
	dropped uint64        // changes that somebody wasn't told of
	refused uint64        // times that somebody wanted to watch a file, and couldn't
}

// mapWatcher is a connection that watches files.
type mapWatcher struct {
	peer    *control.Peer
	files   []dataplane.FileID // a ring when it is full
	oldest  int
	changes []mapChange
}

// mapChange is a chunk whose members have changed.
type mapChange struct {
	file  dataplane.FileID
	chunk control.ChunkMap
}

// add has a connection watch a file.
func (w *mapWatch) add(peer *control.Peer, file dataplane.FileID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.peers[peer]
	watchers := w.files[file]
	if k != nil && slices.Contains(watchers, k) {
		return
	}
	if len(watchers) >= maxFileWatchers || w.watches >= maxWatches {
		w.refused++
		return
	}
	if k == nil {
		if w.peers == nil {
			w.peers = make(map[*control.Peer]*mapWatcher)
			w.files = make(map[dataplane.FileID][]*mapWatcher)
		}
		k = &mapWatcher{peer: peer}
		w.peers[peer] = k
	}
	w.files[file] = append(watchers, k)
	w.watches++
	if len(k.files) < control.MaxWatched {
		k.files = append(k.files, file)
		return
	}
	w.remove(k, k.files[k.oldest])
	k.files[k.oldest] = file
	k.oldest = (k.oldest + 1) % len(k.files)
}

// remove ends that k watches the file. mu is held.
func (w *mapWatch) remove(k *mapWatcher, file dataplane.FileID) {
	watchers := w.files[file]
	i := slices.Index(watchers, k)
	assert(i >= 0, "a watched file knows its watcher", file)
	w.watches--
	if len(watchers) == 1 {
		delete(w.files, file)
		return
	}
	w.files[file] = slices.Delete(watchers, i, i+1)
}

// gone forgets a connection.
func (w *mapWatch) gone(peer *control.Peer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.peers[peer]
	if k == nil {
		return
	}
	delete(w.peers, peer)
	for _, file := range k.files {
		w.remove(k, file)
	}
	if i := slices.Index(w.due, k); i >= 0 {
		w.due = slices.Delete(w.due, i, i+1)
	}
}

// changed notes that the members of a chunk have changed.
func (w *mapWatch) changed(rec *Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	watchers := w.files[rec.File]
	if len(watchers) == 0 {
		return
	}
	c := mapChange{rec.File, control.ChunkMap{Index: rec.Index, Chunk: rec.ID, Epoch: rec.Epoch}}
	for _, m := range rec.members() {
		c.chunk.Members = append(c.chunk.Members, m.CS)
	}
	for _, k := range watchers {
		if len(k.changes) >= maxMapChanges {
			w.dropped++
			continue
		}
		if len(k.changes) == 0 {
			w.due = append(w.due, k)
		}
		k.changes = append(k.changes, c)
	}
}

// take returns what is to be told, and to whom; nil if there is nothing.
func (w *mapWatch) take() []mapNews {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.due) == 0 {
		return nil
	}
	news := make([]mapNews, 0, len(w.due))
	for _, k := range w.due {
		news = append(news, mapNews{k.peer, k.changes})
		k.changes = nil
	}
	w.due = w.due[:0]
	return news
}

// lost notes that changes were taken and couldn't be sent.
func (w *mapWatch) lost(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dropped += uint64(n)
}

// doc describes what is watched, since the leadership began.
func (w *mapWatch) doc() MapWatchDoc {
	w.mu.Lock()
	defer w.mu.Unlock()
	return MapWatchDoc{Watches: uint64(w.watches), Dropped: w.dropped, Refused: w.refused}
}

// MapWatchDoc describes which files' chunk maps clients watch at this leader. Who isn't told of a
// change finds out by the refusal of a chunk server.
type MapWatchDoc struct {
	Watches uint64 // pairs of a connection and a file, now
	Dropped uint64 // changes that a watching connection wasn't told of, since the leader began
	Refused uint64 // requests to watch that were above the bounds, since then
}

// mapNews is what a connection is to be told.
type mapNews struct {
	peer    *control.Peer
	changes []mapChange
}

// pushMaps tells clients of changed chunk maps.
func (l *leader) pushMaps() {
	for _, n := range l.watch.take() {
		slices.SortStableFunc(n.changes, func(a, b mapChange) int {
			return cmp.Compare(a.file, b.file)
		})
		for first := 0; first < len(n.changes); {
			end := first + 1
			for end < len(n.changes) && end-first < control.MaxMapPush &&
				n.changes[end].file == n.changes[first].file {
				end++
			}
			// A client that doesn't read isn't told: it will find out.
			if err := n.peer.Push(control.OpMapChanged, l.mapPush(n.changes[first:end])); err != nil {
				l.watch.lost(end - first)
				l.log.Debug("a changed chunk map isn't told", "peer", n.peer.String(), "reason", err)
			}
			first = end
		}
	}
}

// mapPush makes a message of changes of one file.
func (l *leader) mapPush(changes []mapChange) *control.MapPush {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	p := &control.MapPush{File: changes[0].file}
	now := l.now()
	l.replies++
	for i := range changes {
		p.Chunks = append(p.Chunks, changes[i].chunk)
		for _, cs := range changes[i].chunk.Members {
			if l.firstNamed(cs) {
				p.Servers = append(p.Servers, l.addr(f.s, cs, now))
			}
		}
	}
	return p
}

// watchMap has the asker told of changes, if it wants to be. It comes before the map is read, so
// that no change falls between.
func (c *call) watchMap(req *control.MapReq) {
	if req.Watch {
		c.l.watch.add(c.peer, req.File)
	}
}

func (c *call) watchMaps(req *control.WatchMapsReq) (any, error) {
	if len(req.Files) > control.MaxWatched {
		return nil, c.fail(dataplane.Invalid, "%d files, at most %d", len(req.Files),
			control.MaxWatched)
	}
	for _, file := range req.Files {
		c.l.watch.add(c.peer, file)
	}
	return nil, nil
}
