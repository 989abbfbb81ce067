# Corruption on a disk; garbage and half frames on the ports.
# shellcheck shell=bash

events() { host admin "$bin/pstorage" -c "$name" get-event -o json; }

# crc_events: how many events of damaged data there are.
crc_events() { events | jq '[.. | objects | select(.code? // "" | test("crc"))] | length'; }

run_badinput() {
    step "corrupt bytes in a store file: the read succeeds from another replica"
    local marker file=$mnt/marked
    marker="marker-$RANDOM$RANDOM$RANDOM-0123456789abcdef"
    yes "$marker" | head -c 16M >"$work/marked" || true
    dd if="$work/marked" of="$file" bs=1M oflag=direct conv=fsync status=none
    corrupt_one "$marker"
    local before tries=0
    before=$(crc_events)
    until [[ $(crc_events) -gt $before ]]; do
        tries=$((tries + 1)) # a server that was slow in its last moments gets one read in 64 at first
        [[ $tries -le 200 ]] || die "200 reads of the file and no event of a checksum mismatch"
        dd if="$file" bs=1M iflag=direct status=none | cmp - "$work/marked" ||
            die "wrong bytes were read"
    done
    note "$tries reads, all right; the event:"
    events | jq -r '[.. | objects | select(.code? // "" | test("crc"))] | last
        | "   \(.source): \(.code): \(.message)"'

    step "garbage and half frames on the ports: connections closed, daemons serve on"
    local addr pids=()
    for addr in "$mds_ip:2510" $(stat_json | jq -r '.cs[].addr'); do
        assail "$addr" &
        pids+=($!)
    done
    for addr in "${pids[@]}"; do
        wait "$addr" || die "a port held a bad connection open"
    done
    for addr in mds cs1 cs2 cs3 cs4 mount; do
        alive "$addr" || die "$addr isn't running any more"
    done
    live_cs "$nodes" || die "a chunk server isn't active any more"
    dd if="$file" bs=1M iflag=direct status=none | cmp - "$work/marked" || die "reads fail"
}

finds() { # MARKER NODE FILES
    "$bin/pstorage-perf" flip --dry-run --max 1 --dir "$work/node$2/cs" --glob "$3" --pattern "$1" \
        >/dev/null 2>&1
}

# corrupt_one MARKER: flips bits of one replica's copy, its process stopped meanwhile: one byte per
# MiB, since a client reads one MiB from this replica and the next from that.
corrupt_one() {
    local i
    for i in $(seq "$nodes"); do
        finds "$1" "$i" '*' && break
    done
    # Fresh data is in the journal. A new one takes over none: all of the old is written to the store.
    host "node$i" "$bin/pstorage" -c "$name" configure-cs -r "$work/node$i/cs" -s 96M |
        sed 's/^/   /'
    kill9 "cs$i"
    finds "$1" "$i" '[^s]*' && die "chunk server $i has the data elsewhere than in its store"
    "$bin/pstorage-perf" flip --dir "$work/node$i/cs" --glob store --spread 1M \
        --pattern "$1" >"$work/flipped"
    note "$(wc -l <"$work/flipped") times $(sed "s|$work/||; q" "$work/flipped"), and so on"
    start_cs "$i"
    wait_for 30 "all chunk servers are active" live_cs "$nodes"
}

# assail IP:PORT: garbage; the first half of a good frame and silence; zeros. Each connection must be
# closed by the other side.
assail() {
    local ip=${1%:*} port=${1##*:} what
    for what in garbage half zeros; do
        exec 9<>"/dev/tcp/$ip/$port"
        case $what in
        garbage) head -c 100000 /dev/urandom >&9 2>/dev/null || true ;;
        half) printf 'PSHK\001\001\100\000half of a hello' >&9 ;;
        zeros) head -c 4096 /dev/zero >&9 2>/dev/null || true ;;
        esac
        # Reading ends with the end of the stream or a reset, not by the time limit (124).
        local status=0
        timeout 30 cat <&9 >/dev/null 2>&1 || status=$?
        exec 9>&-
        [[ $status -ne 124 ]] || die "$1 keeps a connection open after: $what"
    done
    note "$1 closed all three"
}
