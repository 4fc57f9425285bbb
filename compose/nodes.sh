# shellcheck shell=bash
# shellcheck disable=SC2034
# What compose/up and compose/down share: which nodes there are, which process is which, and what a data directory says
# of its node. To be sourced.

# A node's ports are the first node's plus its place in this list. The first is the primary of a new cluster.
nodes=(web1 web2 web3)
first_http_port=5001
first_peer_port=7001
# How long a start and a stop may take. A node that is told to stop needs up to 10 s.
patience_s=15

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
data=$root/compose/data

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
fail() {
    say "$@" >&2
    exit 1
}

# Whether a process still runs; one that has ended but was not waited for does not.
is_alive() {
    local state
    state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) && [[ $state == [!ZX] ]]
}

# Finds the process of a node, `kvnode start ...` or `kvnode join ADDRESS ...`: sets `pid`, and `http` and `peer` to its
# addresses; or returns 1 when it does not run. The number in the file alone proves nothing, it may have gone to another
# program since: the process has to be a kvnode that was started on this very data.
find_node() {
    local args=() at='' i is_kvnode=false
    pid='' http='' peer=''
    if [[ -s $data/$1.pid ]]; then
        pid=$(<"$data/$1.pid")
    fi
    [[ $pid =~ ^[1-9][0-9]*$ ]] && is_alive "$pid" || return 1
    # It may end in between.
    { mapfile -d '' -t args <"/proc/$pid/cmdline"; } 2>/dev/null || return 1
    for ((i = 0; i < ${#args[@]}; i++)); do
        case "${args[i]}" in
            */kvnode) is_kvnode=true ;;
            --data) at=${args[i + 1]:-} ;;
            --http) http=${args[i + 1]:-} ;;
            --peer) peer=${args[i + 1]:-} ;;
        esac
    done
    [[ $is_kvnode == true && $at == "$data/$1" ]]
}

# Reads what the data directory of a node says, as node/storage/FORMAT.md has it: sets `role` to "primary", "replica",
# "unreadable", or nothing where there is no node yet; `follows` to the address of a replica's primary; and `term` to
# the number of the last reign that the node knows.
read_role() {
    local identity='' history=''
    role='' follows='' term=0
    [[ -e $data/$1/node.json ]] || return 0
    role=unreadable
    # Up to a zero, of which a damaged file may consist, or to the end, which `read` does not call a success.
    { read -r -d '' identity <"$data/$1/node.json"; read -r -d '' history <"$data/$1/history"; } 2>/dev/null || true
    if [[ $identity =~ '"role":"'([a-z]+)'"' ]]; then
        role=${BASH_REMATCH[1]}
    fi
    if [[ $identity =~ '"primary":"'([^\"]+)'"' ]]; then
        follows=${BASH_REMATCH[1]}
    fi
    if [[ $history =~ .*'["'([0-9]+)'.' ]]; then
        term=${BASH_REMATCH[1]}
    fi
}

# One `up` or `down` at a time: a second one waits, then sees what the first has done.
take_turn() {
    exec {turn}<"$data"
    flock --timeout 60 "$turn" || fail "another compose/up or compose/down is busy with $data."
}
