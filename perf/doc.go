// Package perf measures pstorage from outside: it drives a cluster through the client library,
// and puts every figure beside a yardstick from the same minutes: raw fio (io_uring, O_DIRECT) on
// the same disk. A shared machine's disk and CPUs are noisy; a ratio of two figures measured in
// turns is not nearly as much.
//
//   - Native drives a file through the client library: its callbacks run on the client's loop and
//     do not allocate.
//   - Fio runs one fio job and reads its JSON.
//   - Cluster is a cluster of its own in a temporary directory, started with `pstorage dev`.
//   - Quick is the short plan: a handful of rows, rounds interleaved, medians, ratios.
//
// CPU time per operation is summed over all processes of the cluster and the load generator.
// Job files for fio on a mount are in perf/jobs; the demo, perf/demo/demo.sh, uses them.
package perf
