# The speed check, with its yardstick from the same minute.
# shellcheck shell=bash

# measure ARGUMENT...: a run of pstorage-perf quick; its table, and what it compared.
measure() {
    local status=0
    "$bin/pstorage-perf" quick --dir "$work" "$@" >"$work/speed.out" 2>"$work/speed.err" || status=$?
    sed 's/^/   /' "$work/speed.out"
    if [[ $status -eq 0 ]]; then
        grep 'at least' "$work/speed.err" | sed 's/^/   /' || true
    else
        tail -n 5 "$work/speed.err" | sed 's/^/   /'
    fi
    return "$status"
}

run_speed() {
    step "speed beside raw fio on the same disk"
    # The demo's cluster would compete for the CPUs.
    umount -l "$mnt"
    kill9 "${!daemon[@]}"
    if $short; then
        measure --rounds 1 --seconds 0.5 --size 256M || die "measuring failed"
        return
    fi
    # All rows are needed, however long they take.
    local least=(--within 0 --min randread_q32=0.4 --min randwrite_q32=0.2)
    if ! measure "${least[@]}"; then
        note "once more, in case the machine was busy (load $(cut -d' ' -f1 /proc/loadavg))"
        measure "${least[@]}" || die "too slow beside raw fio"
    fi
}
