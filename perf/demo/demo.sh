#!/usr/bin/env bash
# The demo: a cluster on this machine, a container on it, and everything done to it that a careful
# person would like to see survived. Needs root. Everything it makes is below one temporary
# directory and is removed at the end; KEEP=1 keeps the directory.
#
#   perf/demo/demo.sh [-short]      -short: smaller, and speed without a verdict
#
# Environment: DEMO_DIR where the temporary directory goes (a disk that knows O_DIRECT, default
# /var/tmp), ROOTFS=debian for a Debian root file system by debootstrap instead of busybox, PARTS the
# parts to run after the set-up (default: all; failover and verify need container before them).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
bin=$top/bin
short=false
[[ ${1:-} == -short ]] && short=true
steps_passed=0
begun=$(date +%s%N)

[[ $(id -u) -eq 0 ]] || { echo "demo: needs root, for loop devices and mounts"; exit 1; }
for tool in fio jq mkfs.ext4 fsck.ext4 losetup busybox pgrep unshare; do
    command -v "$tool" >/dev/null || { echo "demo: needs $tool; run: .ci/deps test"; exit 1; }
done
[[ -x $bin/pstorage ]] || { echo "demo: no $bin/pstorage; run: make build"; exit 1; }

work=$(mktemp -d "${DEMO_DIR:-/var/tmp}/pstorage-demo.XXXXXX")
# shellcheck source=perf/demo/lib.sh
source "$here/lib.sh"
trap cleanup EXIT
trap 'exit 130' INT TERM

for part in cluster container failover verify badinput space speed; do
    # shellcheck source=/dev/null
    source "$here/$part.sh"
done

run_cluster
for part in ${PARTS:-container verify failover badinput space speed}; do
    "run_$part"
done
step_end
