// Package perf measures pstorage from outside: it drives a cluster through the client library,
// and puts every figure beside a yardstick from the same minutes: raw fio (io_uring, O_DIRECT) on
// the same disk. A shared machine's disk and CPUs are noisy; a ratio of two figures measured in
// turns is not nearly as much.
//
//   - Native drives a file through the client library: its callbacks run on the client's loop and
//     do not allocate.
//   - Fio runs one fio job and reads its JSON; PingPong is a yardstick of wake-ups.
//   - Cluster is a cluster of its own in a temporary directory, started with `pstorage dev`;
//     Servers are daemons on disks of one's choice.
//   - Bench measures the main figures (Rows) of a cluster in interleaved rounds (RunPlan): through
//     the client library, a mount and NBD, each beside its yardstick.
//   - Engine and Recovery measure on emulated disks.
//   - A Report has figures with goals, and bars beyond which a figure counts as a regression; what
//     couldn't be measured is named with the reason, and doesn't take the rest with it. Compare
//     tells a change between sets of reports from noise.
//
// CPU time per operation is summed over all processes of the cluster and the load generator.
// Job files for people are in perf/jobs, the same workloads as those of the rows (a test compares
// them); the demo, perf/demo/demo.sh, uses those that verify.
package perf
