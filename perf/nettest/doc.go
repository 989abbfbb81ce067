// Package nettest proves the promises with real processes: metadata servers, chunk servers and
// clients, each in a network namespace of its own (package netlab), under cut links, kill -9 and
// SIGSTOP. It has tests only; they need root and run with `make test-net`, a short form of them
// within `make test`:
//
//	.ci/net [-short] [GO TEST FLAGS]
//
// Two clients (this test's binary, started again as a process of its node) write blocks of 4 KiB
// with unique tags, each its own file, and read both files. What they did is checked for
// linearizability, per block, at the end. Fio writes and verifies through a mount meanwhile.
package nettest
