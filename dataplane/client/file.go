package client

import (
	"fmt"
	"sync/atomic"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// File is an open file: what the engine knows of its chunks and its size. All users of one file in
// a process should share one File. Its state belongs to the engine's thread; the exported methods
// say which threads may call them.
type File struct {
	eng  *Engine
	id   dataplane.FileID
	name string        // for people
	size atomic.Uint64 // as the MDS told last

	// Map of chunks, see maps.go.
	pages  []*page
	passed []uint32 // pages to the end of which something was zeroed, see dropHoles
	gen    uint32   // counts truncations: answers to older questions are void
	span   uint32   // chunks that the next cold fetch asks for
	alloc  struct {
		next  uint32 // behind the last allocation
		ahead uint32 // chunks that the next one makes, if it starts there
	}
	calls uint32 // numbers fetches and allocations

	// Size, see size.go. The ...Seq are values of Engine.seq.
	sizeAt     int64 // when the size was learned, ns; 0: never
	sizing     bool
	sizeSeq    uint64
	sizeWait   opQueue
	sizeTimer  uring.Timer
	sizeTries  int
	growBusy   bool
	growQueued bool
	growWait   []*Op
	growSpare  []*Op
	growTimer  uring.Timer
	growTries  int
	growAsked  uint64 // of the Grow, or question for the size, that is under way
	growToken  uint64 // of the lease that the last Grow was by
	grownSeq   uint64
	shrunkSeq  uint64
	doubtSeq   uint64 // when the right to write came; 0: the size was learned since
	theirs     uint64 // an append in front of this goes to the end, see atEnd
	appendTo   uint64 // end of the appends under way that were moved there
	unmet      bool   // no append has come since the end was learned under this right to write
	cut        bool   // appends come with offsets behind an end that their user doesn't know of

	// Flush, see flush.go.
	ackMemory bool     // some write may be acknowledged before it is durable
	dirty     []uint32 // chunks with such writes
	flushList []uint32 // those that are being flushed
	losses    []uint32 // those of them that turned out to have lost something
	flushOp   Op
	flushNow  opQueue // done when flushOp is
	flushNext opQueue // came later: wait for another one

	held    int     // parts that its ops have
	starved opQueue // ops that wait for a free part; if there are any, it is in Engine.starving

	lease  lease
	client *Client // nil in a bare engine
	opens  int     // guarded by client.mu
	opened uint64  // how often; guarded by client.mu
}

// OpenFile makes a File of what the metadata servers told of it. It may be called on any thread;
// two Files of the same id in one engine wouldn't know of each other's growth, so see
// Client.OpenFile.
func (e *Engine) OpenFile(a *control.Attr, name string) (*File, error) {
	if a.Type != control.TypeFile {
		return nil, dataplane.E("open "+name, dataplane.IsDir, nil)
	}
	f := &File{eng: e, id: a.File, name: name, span: pageChunks, ackMemory: a.Policy.AckMemory}
	f.size.Store(a.Size)
	return f, nil
}

// ID is the file's id.
func (f *File) ID() dataplane.FileID { return f.id }

// Name is what the file was opened as first, for people.
func (f *File) Name() string { return f.name }

// Size is the size as far as this client knows, in bytes. It is safe on any thread.
func (f *File) Size() uint64 { return f.size.Load() }

// what says what was tried, for errors.
func (f *File) what(k OpKind) string {
	if f == nil {
		return k.String()
	}
	return fmt.Sprintf("%v file %d (%s)", k, f.id, f.name)
}

// rearm sets a timer of the file for another try of again.
func (f *File) rearm(t *uring.Timer, again func(), tries *int) {
	*tries++
	if t.Fire == nil {
		t.Fire = again
	}
	f.eng.env.Arm(t, f.eng.backoff(*tries))
}
