# The speed check, with its yardstick from the same minute.
# shellcheck shell=bash

run_speed() {
    step "speed beside raw fio on the same disk"
    # The demo's cluster would compete for the CPUs.
    umount "$mnt"
    kill9 "${!daemon[@]}"
    if $short; then
        "$bin/pstorage-perf" quick --dir "$work" --rounds 1 --seconds 0.5 --size 256M |
            sed 's/^/   /'
    else
        "$bin/pstorage-perf" quick --dir "$work" --min randread_q32=0.4 \
            --min randwrite_q32=0.2 | sed 's/^/   /'
    fi
}
