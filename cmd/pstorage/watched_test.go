package main

import (
	"strings"
	"sync"
	"time"
)

// watched keeps what is written to it and lets others wait for a line.
type watched struct {
	mu      sync.Mutex
	buf     strings.Builder
	ended   bool
	changed chan struct{} // closed and replaced at every change
}

func newWatched() *watched { return &watched{changed: make(chan struct{})} }

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	w.signal()
	return len(p), nil
}

func (w *watched) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.signal()
}

func (w *watched) signal() {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *watched) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// waitFor returns the first whole line with text in it.
func (w *watched) waitFor(text string, within time.Duration) (string, bool) {
	deadline := time.After(within)
	for {
		w.mu.Lock()
		all, ended, changed := w.buf.String(), w.ended, w.changed
		w.mu.Unlock()
		for line := range strings.Lines(all) {
			if strings.Contains(line, text) && strings.HasSuffix(line, "\n") {
				return strings.TrimSpace(line), true
			}
		}
		if ended {
			return "", false
		}
		select {
		case <-changed:
		case <-deadline:
			return "", false
		}
	}
}
