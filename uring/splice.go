package uring

import sys "github.com/iceber/iouring-go/syscall"

// noOffset is what pipes and sockets have in the place of a position.
const noOffset = ^uint64(0)

// PrepSplice moves up to n bytes from in to out, one of which is a pipe, without a copy where
// possible. The kernel hands it to one of its worker threads, always. flags are SPLICE_F_*.
func PrepSplice(s *SQE, in, out int, n, flags uint32) {
	prep(s, sys.IORING_OP_SPLICE, FD(out), noOffset, n, noOffset)
	s.SetSpliceFdIn(int32(in))
	s.SetOpFlags(flags)
}

// PrepTee doubles up to n bytes of the pipe in into the pipe out; in keeps them. The kernel hands
// it to one of its worker threads, always.
func PrepTee(s *SQE, in, out int, n, flags uint32) {
	prep(s, sys.IORING_OP_TEE, FD(out), 0, n, 0)
	s.SetSpliceFdIn(int32(in))
	s.SetOpFlags(flags)
}

// PrepSendZC sends n bytes without a copy where possible. It completes twice if the first
// completion has CQEMore: with the second one the memory may be changed.
func PrepSendZC(s *SQE, f File, addr uintptr, n, flags uint32) {
	prep(s, sys.IORING_OP_SEND_ZC, f, uint64(addr), n, 0)
	s.SetOpFlags(flags)
}

// PrepPoll completes when one of events (POLL*), or an error, is there.
func PrepPoll(s *SQE, f File, events uint32) {
	prep(s, sys.IORING_OP_POLL_ADD, f, 0, 0, 0)
	s.SetOpFlags(events)
}
