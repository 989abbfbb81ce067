# fio's own checksums on the mount, across a restart of everything.
# shellcheck shell=bash

run_verify() {
    local size=256m
    $short && size=48m
    step "fio on the mount: 4K random writes, QD32, each block with a CRC32C inside ($size)"
    mkdir -p "$mnt/fio"
    DIR=$mnt/fio SIZE=$size fio --output-format=json "$top/perf/jobs/verify-write.fio" \
        >"$work/fio-write.json" || { cat "$work/fio-write.json"; die "fio failed"; }
    note "$(jq -r '.jobs[0].write | "\(.total_ios) writes, \(.iops | floor) IOPS"' \
        "$work/fio-write.json")"

    step "restart all daemons (kill -9)"
    detach
    kill9 "${!daemon[@]}"
    umount -l "$mnt"
    start_servers
    start_mount mount "$mnt"

    step "fio verifies every block"
    DIR=$mnt/fio SIZE=$size fio --output-format=json "$top/perf/jobs/verify-read.fio" \
        >"$work/fio-read.json" || { tail -50 "$work/fio-read.json"; die "fio found bad blocks"; }
    [[ $(jq '.jobs[0].error' "$work/fio-read.json") == 0 ]] || die "fio found bad blocks"
    note "$(jq -r '.jobs[0].read | "\(.total_ios) blocks, 0 errors"' "$work/fio-read.json")"
    rm -r "$mnt/fio"
    attach "$mnt"
}
