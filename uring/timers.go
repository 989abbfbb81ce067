package uring

// TimerHeap orders timers by time, then by the order of arming: the same on every run. It is used
// by Loop and by simloop. The zero value is empty.
type TimerHeap struct {
	h   []*Timer
	seq uint64
}

// Arm sets t to fire at the given time (ns); an armed timer is moved.
func (q *TimerHeap) Arm(t *Timer, when int64) {
	q.Disarm(t)
	q.seq++
	t.when, t.seq = when, q.seq
	q.h = append(q.h, t)
	t.heap = len(q.h)
	q.up(len(q.h) - 1)
}

// Disarm removes t if it is armed.
func (q *TimerHeap) Disarm(t *Timer) {
	if t.heap == 0 {
		return
	}
	i := t.heap - 1
	last := len(q.h) - 1
	if i != last {
		q.swap(i, last)
	}
	q.h[last] = nil
	q.h = q.h[:last]
	t.heap = 0
	if i < last {
		q.up(i)
		q.down(i)
	}
}

// Next returns the time (ns) of the earliest timer; ok is false if there is none.
func (q *TimerHeap) Next() (when int64, ok bool) {
	if len(q.h) == 0 {
		return 0, false
	}
	return q.h[0].when, true
}

// Pop removes and returns the earliest timer due at now (ns), or nil.
func (q *TimerHeap) Pop(now int64) *Timer {
	if len(q.h) == 0 || q.h[0].when > now {
		return nil
	}
	t := q.h[0]
	q.Disarm(t)
	return t
}

func (q *TimerHeap) less(i, j int) bool {
	a, b := q.h[i], q.h[j]
	return a.when < b.when || a.when == b.when && a.seq < b.seq
}

func (q *TimerHeap) swap(i, j int) {
	q.h[i], q.h[j] = q.h[j], q.h[i]
	q.h[i].heap, q.h[j].heap = i+1, j+1
}

func (q *TimerHeap) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !q.less(i, p) {
			return
		}
		q.swap(i, p)
		i = p
	}
}

func (q *TimerHeap) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(q.h) {
			return
		}
		if c+1 < len(q.h) && q.less(c+1, c) {
			c++
		}
		if !q.less(c, i) {
			return
		}
		q.swap(i, c)
		i = c
	}
}

// TurnQueue is the list behind Env.AtTurnEnd. The zero value is empty.
type TurnQueue struct{ q, spare []*TurnEnder }

// Add queues e unless it is queued already.
func (q *TurnQueue) Add(e *TurnEnder) {
	if !e.queued {
		e.queued = true
		q.q = append(q.q, e)
	}
}

// Run calls everything queued, in order, including what is queued meanwhile by others.
func (q *TurnQueue) Run() {
	for len(q.q) > 0 {
		batch := q.q
		q.q = q.spare[:0]
		for i, e := range batch {
			batch[i] = nil
			e.queued = false
			e.TurnEnd()
		}
		q.spare = batch
	}
}

// Empty says whether nothing is queued.
func (q *TurnQueue) Empty() bool { return len(q.q) == 0 }
