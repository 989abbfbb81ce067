package uring

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func setPolicy(t *testing.T, policy uintptr) {
	t.Helper()
	s := schedule{}
	s.set(policyNow(), policy)
	if s.off || policyNow() != policy {
		t.Skipf("scheduling policies can't be changed here")
	}
}

// policyNow is the policy of the calling thread.
func policyNow() uintptr {
	policy, _, _ := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, 0, 0, 0)
	return policy
}

// A loop that is deep in work is a batch thread, and an ordinary one again with little work and
// after it.
func TestScheduleFollowsDepth(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	setPolicy(t, unix.SCHED_BATCH)
	setPolicy(t, unix.SCHED_NORMAL)
	depth, seen := 0, map[uintptr]int{}
	l, err := NewLoop(LoopOptions{PoolSize: 1 << 20, NoRegister: true, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	l.SetDepth(func() int { return depth })
	// Each step is a turn that ends with a sleep.
	turn := 0
	var timer Timer
	timer.Fire = func() {
		turn++
		policy := policyNow()
		seen[policy]++
		switch {
		case turn < 100:
			depth = deepFrom - 1
			if policy != unix.SCHED_NORMAL {
				t.Errorf("turn %d, depth %d: policy %d", turn, depth, policy)
			}
		case turn < 500:
			depth = 4 * deepFrom
			if policy != unix.SCHED_BATCH && turn > 300 {
				t.Errorf("turn %d, depth %d: policy %d", turn, depth, policy)
			}
		case turn < 900:
			depth = 1
			if policy != unix.SCHED_NORMAL && turn > 800 {
				t.Errorf("turn %d, depth %d: policy %d", turn, depth, policy)
			}
		case turn < 1200:
			depth = 4 * deepFrom
		default:
			if policy != unix.SCHED_BATCH {
				t.Errorf("turn %d, depth %d: policy %d", turn, depth, policy)
			}
			l.Stop()
			return
		}
		l.Arm(&timer, 1000)
	}
	l.Arm(&timer, 0)
	if err := l.Run(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if p := policyNow(); p != unix.SCHED_NORMAL {
		t.Errorf("policy %d after the loop's end", p)
	}
	t.Logf("turns by policy: %v", seen)
}

// A policy that somebody else chose stays.
func TestScheduleOfOthers(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	setPolicy(t, unix.SCHED_BATCH)
	defer setPolicy(t, unix.SCHED_NORMAL)
	s := schedule{depth: func() int { return 100 }}
	for range 10 * depthEvery {
		s.choose()
	}
	s.end()
	if p := policyNow(); p != unix.SCHED_BATCH {
		t.Errorf("a batch thread's policy was changed to %d", p)
	}
}
