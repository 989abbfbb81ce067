# Helpers of demo.sh: steps, daemons by "host", clean-up. Sourced, not run.
# shellcheck shell=bash

step_started=0
step_name=

# step TEXT: begins a step; the one before it has passed.
step() {
    step_end
    step_name=$*
    step_started=$(date +%s%N)
    printf '\n== %s\n' "$step_name"
}

step_end() {
    [[ -n $step_name ]] || return 0
    steps_passed=$((steps_passed + 1))
    printf '   ok (%s s)\n' "$(seconds_since "$step_started")"
    step_name=
}

seconds_since() { # NANOSECONDS
    local ms=$((($(date +%s%N) - $1) / 1000000))
    printf '%d.%01d' $((ms / 1000)) $((ms % 1000 / 100))
}

note() { printf '   %s\n' "$*"; }

die() {
    printf '   FAILED: %s\n' "$*" >&2
    exit 1
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
    local limit=$1 what=$2 end
    shift 2
    end=$(($(date +%s) + limit))
    until "$@" >/dev/null 2>&1; do
        [[ $(date +%s) -lt $end ]] || die "still not after $limit s: $what"
        sleep 0.1
    done
}

# A "host" is a folder with a configuration of its own: on real machines it is /etc/pstorage.
host() { # HOST COMMAND...
    local name=$1
    shift
    PSTORAGE_ETC=$work/$name/etc "$@"
}

# start NAME HOST COMMAND...: a daemon in the background, in a session of its own.
declare -A daemon=() # name -> process id
start() {
    local name=$1 host=$2
    shift 2
    PSTORAGE_ETC=$work/$host/etc setsid "$@" >>"$work/$name.log" 2>&1 </dev/null &
    daemon[$name]=$!
    disown
}

# tree PID: the process and all below it.
tree() {
    local child
    printf '%s\n' "$1"
    for child in $(pgrep -P "$1" || true); do tree "$child"; done
}

# kill9 NAME...: these daemons and their children, all at once, no goodbye.
kill9() {
    local name pids=()
    for name in "$@"; do
        [[ -n ${daemon[$name]:-} ]] || continue
        mapfile -t -O "${#pids[@]}" pids < <(tree "${daemon[$name]}")
    done
    [[ ${#pids[@]} -gt 0 ]] || return 0
    kill -9 "${pids[@]}" 2>/dev/null || true
    for name in "$@"; do
        unset "daemon[$name]"
    done
    local pid
    for pid in "${pids[@]}"; do
        wait_for 10 "process $pid is gone" gone "$pid"
    done
}

# gone PID: no such process, or only its exit status is left.
gone() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    [[ ${stat##*) } == Z* ]]
}

alive() { # NAME
    [[ -n ${daemon[$1]:-} ]] && ! gone "${daemon[$1]}"
}

# Processes other than daemons that have to go at the end.
declare -a helpers=()

cleanup() {
    local status=$? i
    trap - EXIT INT TERM
    set +e
    [[ $status -eq 0 ]] || show_logs
    for i in "${helpers[@]}"; do
        # shellcheck disable=SC2046
        kill -9 $(tree "$i") 2>/dev/null
    done
    # Daemons go before mounts: a mount without its daemon fails at once and can't hang.
    kill9 "${!daemon[@]}" 2>/dev/null
    leave_mounts
    if [[ -n ${KEEP:-} ]]; then
        echo "kept: $work"
    else
        rm -rf --one-file-system "$work"
    fi
    if [[ $status -eq 0 ]]; then
        echo
        echo "PASS: $steps_passed steps in $(seconds_since "$begun") s"
    else
        echo
        echo "FAIL: in step \"$step_name\", after $steps_passed good steps," \
            "$(seconds_since "$begun") s"
    fi
    exit "$status"
}

# leave_mounts: detaches and unmounts everything below $work, innermost first. A loop device that
# is mounted goes away with its mount.
leave_mounts() {
    local at loop
    while read -r loop; do
        losetup -d "$loop" 2>/dev/null
    done < <(losetup -nO NAME,BACK-FILE | grep -F "$work/" | cut -d' ' -f1)
    while read -r at; do
        umount -l "$at" 2>/dev/null
    done < <(cut -d' ' -f2 /proc/mounts | grep -F "$work/" | tac)
}

show_logs() {
    local log
    for log in "$work"/*.log; do
        [[ -s $log ]] || continue
        printf -- '--- end of %s\n' "${log##*/}" >&2
        tail -n 15 "$log" >&2
    done
}
