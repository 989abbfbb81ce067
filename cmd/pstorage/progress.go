package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

const (
	progressTick  = 200 * time.Millisecond // between two changes of a line on a terminal,
	progressLine  = 5 * time.Second        // and between two lines elsewhere
	progressQuiet = time.Second            // work that is done by then shows nothing
)

// progress shows how far long work is, with rate and time left: one line that changes on a
// terminal, else a line now and then.
type progress struct {
	out   io.Writer
	tty   bool
	quiet bool
	now   func() time.Time

	step    string
	began   time.Time // of the step
	first   int64     // what was done then
	shownAt time.Time
	shown   bool // a line is on the terminal
}

func newProgress(out io.Writer, quiet bool) *progress {
	p := &progress{out: out, quiet: quiet, now: time.Now}
	if file, ok := out.(*os.File); ok {
		p.tty = term.IsTerminal(int(file.Fd()))
	}
	return p
}

// bytes tells how many bytes of a step are done. It is called from one goroutine at a time.
func (p *progress) bytes(step string, done, total int64) {
	now := p.now()
	if step != p.step {
		p.step, p.began, p.first, p.shownAt = step, now, done, now
	}
	every := progressLine
	if p.tty {
		every = progressTick
	}
	if p.quiet || now.Sub(p.began) < progressQuiet || now.Sub(p.shownAt) < every && done < total {
		return
	}
	p.shownAt = now
	line := progressText(step, done, total, done-p.first, now.Sub(p.began))
	if p.tty {
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
		p.shown = true
		return
	}
	fmt.Fprintln(p.out, line)
}

// progressText is a line of progress; moved is what was done in the time took.
func progressText(step string, done, total, moved int64, took time.Duration) string {
	text := fmt.Sprintf("%s: %s of %s", step, size(uint64(done)), size(uint64(total)))
	if moved <= 0 || took <= 0 {
		return text
	}
	rate := float64(moved) / took.Seconds()
	text += fmt.Sprintf(", %s/s", size(uint64(rate)))
	if done < total {
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		text += fmt.Sprintf(", about %v left", max(left.Round(time.Second), time.Second))
	}
	return text
}

// end makes room for what comes after the progress.
func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.shown = false
	}
}

// waitLine shows what is waited for: one line that changes on a terminal, else a line now and then.
type waitLine struct {
	out    io.Writer
	tty    bool
	quiet  bool
	last   string
	lastAt time.Time
}

func newWaitLine(out io.Writer, quiet bool) waitLine {
	return waitLine{out: out, tty: newProgress(out, quiet).tty, quiet: quiet}
}

func (w *waitLine) show(now time.Time, line string) {
	switch {
	case w.quiet:
		return
	case w.tty:
		fmt.Fprintf(w.out, "\r\x1b[K%s", line)
	case line != w.last && now.Sub(w.lastAt) >= progressLine:
		fmt.Fprintln(w.out, line)
		w.lastAt = now
	default:
		return
	}
	w.last = line
}

// end makes room for what comes after it.
func (w *waitLine) end() {
	if w.tty && w.last != "" && !w.quiet {
		fmt.Fprint(w.out, "\r\x1b[K")
	}
}
