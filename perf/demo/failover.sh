# One chunk server dies while the container writes.
# shellcheck shell=bash

degraded() { stat_json | jq -r '.chunks.degraded // 0'; }
is_degraded() { [[ $(degraded) -gt 0 ]]; }

run_failover() {
    step "with the image in use, kill -9 one chunk server (supervisor and child)"
    # The container writes 64 KiB, syncs, reads back, counts; any error ends it.
    contain "set -e
        i=0
        while [ ! -e /data/stop ]; do
            i=\$((i + 1))
            dd if=/dev/urandom of=/data/turn bs=64k count=1 conv=fsync 2>/dev/null
            sha256sum /data/turn > /data/turn.sum
            sha256sum -c /data/turn.sum >/dev/null
            echo \$i > /data/count
        done" >"$work/writer.log" 2>&1 &
    local writer=$!
    helpers+=("$writer")
    wait_for 20 "the container writes" test -s "$work/root/data/count"
    local before after killed
    before=$(cat "$work/root/data/count")
    killed=$(date +%s%N)
    kill9 cs1
    # 20 more turns, each with an fsync, while the dead server's lease runs out.
    count_is_over() { [[ $(cat "$work/root/data/count" 2>/dev/null || echo 0) -gt $1 ]]; }
    wait_for 40 "the container goes on writing" count_is_over $((before + 20))
    note "20 more synced writes $(seconds_since "$killed") s after the kill"
    kill -0 "$writer" || { cat "$work/writer.log"; die "the container's program failed"; }

    step "stat shows the degraded chunks"
    wait_for 20 "stat shows degraded chunks" is_degraded
    note "degraded chunks: $(degraded)"
    before=$(cat "$work/root/data/count")
    wait_for 40 "the container goes on writing" count_is_over $((before + 20))
    note "20 more synced writes on degraded chunks"
    host admin "$bin/pstorage" -c "$name" stat | sed 's/^/   /'
    kill -0 "$writer" || { cat "$work/writer.log"; die "the container's program failed"; }
    touch "$work/root/data/stop"
    wait "$writer" || { cat "$work/writer.log"; die "the container's program failed"; }
    after=$(cat "$work/root/data/count")
    contain "cd /data && sha256sum -c SUMS turn.sum >/dev/null" || die "hashes differ"
    note "no error in $after turns; all hashes are as before"

    step "the chunk server comes back"
    start_cs 1
    wait_for 30 "all chunk servers are active" live_cs "$nodes"
    detach
}
