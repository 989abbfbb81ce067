package main

import (
	"fmt"
	"strings"
)

// What happens besides the kinds of faults that a scenario's weights are for: each is drawn by a
// stream of its own.
const (
	faultMisread = faultKinds + iota
	faultHang
	sceneAway
	sceneDarkness
	sceneDrain
	sceneGhost
	sceneImage
	sceneLate
	sceneLiar
	sceneLone
	sceneStrand
	allKinds
)

var sceneNames = [allKinds - faultKinds]string{"misread", "hang", "away", "darkness", "drain",
	"ghost", "image", "late", "liar", "lone", "strand"}

// kindName names a fault or a scene.
func kindName(kind int) string {
	if kind < faultKinds {
		return faultNames[kind]
	}
	return sceneNames[kind-faultKinds]
}

// injected counts, by kind, what was done: a kind that never is proves nothing.
type injected [allKinds]int

// did notes that something was done, not only tried.
func (w *world) did(kind int) { w.counts.injected[kind]++ }

func (c injected) String() string {
	var b strings.Builder
	for k, n := range c {
		fmt.Fprintf(&b, " %s %d", kindName(k), n)
	}
	return "injected:" + b.String()
}

// never lists the kinds that weren't.
func (c injected) never() (names []string) {
	for k, n := range c {
		if n == 0 {
			names = append(names, kindName(k))
		}
	}
	return names
}
