# A cluster by hand: the lines of the README, with each "host" a configuration folder of its own.
# shellcheck shell=bash

name=demo
password="correct horse battery"
net=127.$((RANDOM % 180 + 20)).$((RANDOM % 250 + 1)) # so that two demos can run at a time
mds_ip=$net.1
nodes=4

stat_json() { host admin "$bin/pstorage" -c "$name" stat -o json; }

live_cs() { # an ill one serves, too: a busy machine's disk makes it that for a moment
    [[ $(stat_json | jq '[.cs[] | select(.status | IN("active", "ill"))] | length') -ge $1 ]]
}

start_mds() { start mds mds "$bin/pstorage-mdsd"; }

start_cs() { start "cs$1" "node$1" "$bin/pstorage-csd"; }

# start_mount NAME DIR: mounts, and waits until it is there.
start_mount() {
    mkdir -p "$2"
    start "$1" client "$bin/pstorage-mount" -c "$name" -f "$2"
    wait_for 30 "$2 is mounted" mountpoint -q "$2"
}

start_servers() {
    local i
    start_mds
    for i in $(seq "$nodes"); do start_cs "$i"; done
    wait_for 30 "all chunk servers are active" live_cs "$nodes"
}

# auth HOST: the host proves the password and gets the cluster's key.
auth() {
    mkdir -p "$work/$1/etc"
    host "$1" "$bin/pstorage" -c "$name" auth-node -b "$mds_ip" -P <<<"$password" >/dev/null
}

run_cluster() {
    step "a cluster by hand: one metadata server, $nodes chunk servers, three copies"
    mkdir -p "$work/mds/etc"
    host mds "$bin/pstorage" -c "$name" make-mds -I -a "$mds_ip" -r "$work/mds/data" -P \
        <<<"$password" | sed 's/^/   /'
    start_mds
    wait_for 15 "the metadata server answers" \
        host mds "$bin/pstorage" -c "$name" stat
    local i
    for i in $(seq "$nodes"); do
        auth "node$i"
        host "node$i" "$bin/pstorage" -c "$name" make-cs -r "$work/node$i/cs" \
            -a "$net.10$i" -s 64M >/dev/null
        start_cs "$i"
    done
    auth client
    auth admin
    wait_for 30 "all chunk servers are active" live_cs "$nodes"
    mnt=$work/mnt
    start_mount mount "$mnt"
    host admin "$bin/pstorage" -c "$name" stat | sed 's/^/   /'

    step "a wrong password changes nothing"
    mkdir -p "$work/stranger/etc"
    if host stranger "$bin/pstorage" -c "$name" auth-node -b "$mds_ip" -P <<<"wrong" \
        2>"$work/stranger.out"; then
        die "a wrong password was accepted"
    fi
    note "$(cat "$work/stranger.out")"
    [[ $(wc -l <"$work/stranger.out") -eq 1 ]] || die "the error isn't one line"
    [[ -z $(find "$work/stranger/etc" -type f) ]] || die "it left files behind"
}
