package session

import (
	"sync"
	"time"
)

// Limiter bounds how fast something may fail: a bucket of burst tokens, one more every so often.
// It is safe for concurrent use.
type Limiter struct {
	burst float64
	every time.Duration
	now   func() time.Time

	mu     sync.Mutex // guards what follows
	tokens float64
	last   time.Time
}

// NewLimiter returns a full bucket of burst tokens that gains one each every. now is the clock,
// nil for the real one.
func NewLimiter(burst int, every time.Duration, now func() time.Time) *Limiter {
	if burst < 1 || every <= 0 {
		panic("session: a limiter needs a burst of at least 1 and a positive interval")
	}
	if now == nil {
		now = time.Now
	}
	return &Limiter{burst: float64(burst), every: every, now: now,
		tokens: float64(burst), last: now()}
}

// take takes a token, if there is one. A nil Limiter has always one.
func (l *Limiter) take() bool {
	if l == nil {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if d := now.Sub(l.last); d > 0 {
		l.tokens = min(l.burst, l.tokens+float64(d)/float64(l.every))
		l.last = now
	}
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

// giveBack returns a token: the attempt did not fail.
func (l *Limiter) giveBack() {
	if l == nil {
		return
	}
	l.mu.Lock()
	l.tokens = min(l.burst, l.tokens+1)
	l.mu.Unlock()
}
