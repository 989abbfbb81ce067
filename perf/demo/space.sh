# A cluster that is full: a clear status, nothing lost, and it goes on when there is more space.
# shellcheck shell=bash

small_cs() { host "small" "$bin/pstorage" -c small stat -o json; }

run_space() {
    step "out of space: three small chunk servers, and more data than they hold"
    local i
    mkdir -p "$work/small/etc"
    host small "$bin/pstorage" -c small make-mds -I -a "$net.201" -r "$work/small/mds" -P \
        <<<"$password" >/dev/null
    start small-mds small "$bin/pstorage-mdsd"
    wait_for 15 "the small cluster answers" small_cs
    for i in 1 2 3; do
        host small "$bin/pstorage" -c small make-cs -r "$work/small/cs$i" -a "$net.21$i" \
            -s 256M --capacity 256M >/dev/null
    done
    start small-cs small "$bin/pstorage-csd"
    small_live() { [[ $(small_cs | jq '[.cs[] | select(.status | IN("active", "ill"))] | length') -ge $1 ]]; }
    wait_for 30 "the small chunk servers are active" small_live 3
    mkdir -p "$work/small/mnt"
    start small-mount small "$bin/pstorage-mount" -c small -f "$work/small/mnt"
    wait_for 30 "the small cluster is mounted" mountpoint -q "$work/small/mnt"

    head -c 96M /dev/urandom >"$work/small/data"
    local writer
    (for i in 1 2 3 4; do
        dd if="$work/small/data" of="$work/small/mnt/file$i" bs=1M oflag=direct status=none ||
            exit 1
    done) >"$work/small/writer.out" 2>&1 &
    writer=$!
    helpers+=("$writer")
    says_full() { small_cs | jq -e '.reasons[] | select(test("no space"))'; }
    wait_for 60 "stat says that space is used up" says_full
    host small "$bin/pstorage" -c small stat | sed 's/^/   /'
    kill -0 "$writer" || { cat "$work/small/writer.out"; die "the writer failed, it should wait"; }

    step "more space is added: the writer goes on by itself, nothing is lost"
    kill -0 "$writer" || { cat "$work/small/writer.out"; die "the writer failed, it should wait"; }
    for i in 4 5 6; do
        host small "$bin/pstorage" -c small make-cs -r "$work/small/cs$i" -a "$net.21$i" \
            -s 256M --capacity 512M >/dev/null
    done
    wait_for 30 "the running pstorage-csd has started them" small_live 6
    wait "$writer" || { cat "$work/small/writer.out"; die "the writer failed"; }
    for i in 1 2 3 4; do
        cmp "$work/small/data" "$work/small/mnt/file$i" || die "file$i differs"
    done
    umount "$work/small/mnt"
    kill9 small-mount small-cs small-mds
}
