package mds

import (
	"strings"
	"time"

	"pstorage/dataplane/control"
)

// A cluster without room for a new chunk makes writers wait; they ask again several times a
// second. This file keeps that from happening in silence: stat says so as long as somebody waits,
// and an event says so once.

// fullFor is how long after the last writer was turned away stat says that there is no space.
const fullFor = 3 * time.Second

// fullness is the last time that a chunk could not be placed.
type fullness struct {
	atNs int64 // 0: never
	why  string
}

// noSpace notes that a writer was turned away. mu is held.
func (l *leader) noSpace(err error) {
	now := l.now()
	fresh := l.full.atNs == 0 || now-l.full.atNs > int64(fullFor)
	advice := "; add chunk servers, or delete files"
	if strings.Contains(err.Error(), control.ConfigLimit) {
		advice = "; raise it, or delete files"
	}
	l.full = fullness{atNs: now, why: err.Error() + advice}
	if fresh {
		l.event(control.Fault, "mds", "no-space", "no space for new chunks, writers wait: "+
			l.full.why)
	}
}

// fullReason says that writers wait for space, or is empty. mu is held.
func (l *leader) fullReason() string {
	if l.full.atNs == 0 || l.now()-l.full.atNs > int64(fullFor) {
		return ""
	}
	return "no space for new chunks, writers wait: " + l.full.why
}
