#!/usr/bin/env bash
# Runs the long scenarios of the laboratory and of the simulator, each against its bounds.
#
#   scripts/soak.sh              all of them, one after the other: most of a day on two cores
#   scripts/soak.sh NAME...      only these
#   scripts/soak.sh --list       their names, and what each runs
#
# Figures go to target/soak/NAME.json (one line), the course to target/soak/NAME.err. A scenario that
# fails does not keep the others from running. Ends with a table, and with exit code 1 if a bound
# was broken. SOAK_BIN=FOLDER takes the programs from there instead of building them.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

readonly OUT=target/soak
readonly BIN=${SOAK_BIN:-target/release}
listing=false
wanted=()
known=()
rows=()
broken=0

# A gateway is lost at once, and with it etcd's leader in half of the runs.
readonly LOST=(--max-outage-p50-ms 400 --max-outage-ms 1000)
readonly LOST_MORE="outage_ms_follower.max<=800 leader_runs>=7"
# Only the agent is hit: kernel and routing go on.
readonly UNHARMED=(--max-packets-lost 0)
# The gateway comes back by itself, or says itself that it is unfit.
readonly HANDED=(--max-outage-ms 1000 --max-return-gap-ms 300)
# A mesh of 3000: two virtual minutes of it take less than one.
MESH="update_ms.p99<=500 update_ms.max<=1000 copies_per_update<=4 crash_known_ms.p99<=3000"
MESH+=" crash_known_ms.max<=5000 false_failures<=0 idle_bytes_per_node_s<=300 join_ms.state<=2000"
MESH+=" join_ms.known<=3000 join_ms.received_over_state<=1.3 repair_bytes<=2048"
MESH+=" repair_round_trips<=4 virtual_s>=110 wall_s<=60"
readonly MESH

scenarios() {
    local fault
    for fault in cut silent power; do
        failover "failover-$fault" "$LOST_MORE" "${LOST[@]}" --gateways 3 --fault "$fault"
    done
    for fault in kill freeze; do
        failover "failover-$fault" "" "${UNHARMED[@]}" --gateways 3 --fault "$fault"
    done
    for fault in pause uplink fabric; do
        failover "failover-$fault" "" "${HANDED[@]}" --gateways 3 --fault "$fault"
    done
    failover failover-witness "$LOST_MORE" "${LOST[@]}" --witness --fault cut
    failover failover-store-elsewhere "" --gateways 2 --store elsewhere --victim any --fault cut \
        --max-outage-ms 1500
    scenario failover-2000 "" selvedge-lab failover --networks 2000 --gateways 3 --runs 3 \
        --fault cut --max-outage-ms 1200
    scenario restart "" selvedge-lab restart --networks 100
    scenario load "" selvedge-lab load --seconds 600
    scenario store-away "" selvedge-lab store-away
    scenario majority "" selvedge-lab majority --max-outage-ms 2000
    scenario bgpd "" selvedge-lab bgpd --max-outage-ms 5000
    scenario migrate "" selvedge-lab migrate --networks 200 --moves 200 --max-seconds-per-move 3
    scenario store-10000 "" selvedge-lab store --networks 10000 --max-reassigned-ms 1000
    # Twice what the simulator says of 200 members.
    scenario mesh-agents "update_ms.p99<=680 update_ms.max<=680 crash_known_ms.p99<=4900 \
join_ms.state<=2400 idle_bytes_per_node_s<=550 false_failures<=0" selvedge-lab mesh --agents 200
    scenario mesh-restart "" selvedge-lab mesh-restart --members 5 --runs 50
    scenario mesh-leave "" selvedge-lab mesh-leave --members 8 --runs 20
    scenario mesh-roam "" selvedge-lab mesh-roam --runs 20
    scenario mesh-speed "" selvedge-lab mesh-speed --seconds 10 --runs 10
    scenario mesh-clients "" selvedge-lab mesh-clients --cuts 20
    scenario mesh-exits "" selvedge-lab mesh-exits --runs 20
    scenario mesh-bridges "" selvedge-lab mesh-bridges --runs 20
    scenario mesh-overlay "$LOST_MORE" selvedge-lab mesh-overlay --networks 20 --runs 20 "${LOST[@]}"
    scenario sim-500 "" selvedge-sim gateway --chaos --seeds 0..1000 --networks 500
    scenario sim-50000 "" selvedge-sim gateway --chaos --seeds 0..10 --networks 50000
    scenario mesh-partition "" selvedge-sim mesh --scenario testing/sim/scenarios/long-partition.toml
    scenario mesh-churn "" selvedge-sim mesh --scenario testing/sim/scenarios/long-churn.toml
    scenario mesh-bad-network "" selvedge-sim mesh --scenario testing/sim/scenarios/long-bad-network.toml
    scenario mesh-forgetting "" selvedge-sim mesh --scenario testing/sim/scenarios/long-forgetting.toml
    scenario mesh-everything "" selvedge-sim mesh --seeds 0..200 \
        --scenario testing/sim/scenarios/everything.toml
    for seed in {1..10}; do
        mesh_figures "$seed"
    done
    # 5100 node-hours, and under one in 1000.
    together mesh-stalls-{1..10} -- false_failures 5
    scenario mesh-chaos "violations<=0" selvedge-sim mesh --chaos --seeds 0..2000
    scenario mesh-10000 "violations<=0" selvedge-sim mesh --nodes 10000 --partition 0 --idle 20
}

# The figures of docs/mesh-membership.md, with one seed: news, crashes, joins, repair and idleness;
# false failures; crowds; partitions of ten minutes.
mesh_figures() {
    local seed=$1 nodes
    local none=(--seed "$seed" --updates 0 --crashes 0 --joins 0)
    local whole=("${none[@]}" --partition 0)
    scenario "mesh-3000-$seed" "$MESH" selvedge-sim mesh --seed "$seed" --joins 6 --idle 80 \
        --partition 0
    scenario "mesh-idle-$seed" "false_failures<=0" selvedge-sim mesh "${whole[@]}" --idle 600
    scenario "mesh-stalls-$seed" "false_failures<=2" selvedge-sim mesh "${whole[@]}" --idle 600 \
        --loss 0.05 --stalling 0.05
    scenario "mesh-churn-$seed" "churn_ms<=15000" selvedge-sim mesh "${whole[@]}" --churn 100
    for nodes in 2 20 3000; do
        scenario "mesh-parts-$nodes-$seed" "heal_ms<=5000 heal_lives_ms<=5000" \
            selvedge-sim mesh "${none[@]}" --idle 0 --nodes "$nodes" --partition 600
    done
}

main() {
    parse "$@"
    $listing || prepare
    scenarios
    $listing && exit 0
    report
}

# The names have to be known before a build that takes minutes.
parse() {
    local name
    [ "${1:-}" = --list ] && listing=true && return
    listing=true
    scenarios >/dev/null
    listing=false
    for name in "$@"; do
        if ! contains "$name" "${known[@]}"; then
            echo "soak: there is no scenario $name; there are: ${known[*]}" >&2
            exit 2
        fi
    done
    wanted=("$@")
}

prepare() {
    mkdir -p "$OUT"
    if [ -z "${SOAK_BIN:-}" ]; then
        cargo build --release -p selvedge-lab -p selvedge-sim || exit 1
    fi
    # The scenario under way removes what it made by itself.
    trap 'rows+=("interrupted|||"); broken=$((broken + 1)); report' INT TERM
}

# The common part of the scenarios with a fault: its name, further bounds, the other options.
failover() {
    local name=$1 bounds=$2
    shift 2
    scenario "$name" "$bounds" selvedge-lab failover --networks 100 --runs 20 "$@"
}

# Runs one: its name, further bounds on its figures (see `holds`), the program, the arguments.
scenario() {
    local name=$1 bounds=$2 program=$3 began=$SECONDS code=0 verdict=held notes
    shift 3
    known+=("$name")
    if $listing; then
        echo "$name: $program $* --json${bounds:+   [$bounds]}"
        return
    fi
    [ ${#wanted[@]} -eq 0 ] || contains "$name" "${wanted[@]}" || return 0
    echo "soak: $name: $program $*"
    rm -f "$OUT/$name.json"
    "$BIN/$program" "$@" --json >"$OUT/$name.out" 2>"$OUT/$name.err" || code=$?
    grep '^{' "$OUT/$name.out" | tail -n 1 >"$OUT/$name.json"
    rm -f "$OUT/$name.out"
    notes=$(complaints "$name" "$code" "$bounds")
    if [ -n "$notes" ]; then
        verdict=BROKEN
        broken=$((broken + 1))
    fi
    rows+=("$name|$verdict|$((SECONDS - began)) s|$notes")
    echo "soak: $name: $verdict after $((SECONDS - began)) s${notes:+: $notes}"
    cat "$OUT/$name.json"
}

# Adds up a figure of scenarios, if all of them ran: their names, --, the figure, its bound.
together() {
    local names=() name sum=0
    while [ "$1" != -- ]; do
        names+=("$1")
        shift
    done
    $listing && return
    for name in "${names[@]}"; do
        [ ${#wanted[@]} -eq 0 ] || contains "$name" "${wanted[@]}" || return 0
        [ -s "$OUT/$name.json" ] || return 0
        sum=$((sum + $(figure "$2" "$OUT/$name.json")))
    done
    echo "soak: ${names[0]} to ${names[-1]}: $2 $sum in all, $3 may be"
    if [ "$sum" -gt "$3" ]; then
        broken=$((broken + 1))
        rows+=("${names[0]} ...|BROKEN||$2 $sum in all, $3 may be")
    fi
}

# What is wrong with a scenario, in one line; nothing if all is well.
complaints() {
    local name=$1 code=$2 bound said
    {
        if [ "$code" != 0 ]; then
            said=$(sed -n 's/.*a bound does not hold: //p; s/.*error: /error: /p; /^violation:/p' \
                "$OUT/$name.err" | head -n 3)
            echo "${said:-exit code $code, see $OUT/$name.err}"
        elif [ ! -s "$OUT/$name.json" ]; then
            echo "no figures, see $OUT/$name.err"
        fi
        [ ! -s "$OUT/$name.json" ] || for bound in $3; do
            holds "$bound" "$OUT/$name.json" || echo "not $bound ($(figure "${bound%%[<>]*}" "$OUT/$name.json"))"
        done
    } | paste -sd ';' | sed 's/;/; /g'
}

# Whether KEY<=NUMBER or KEY>=NUMBER is true of a line of figures. A figure that is not there breaks
# the bound: or else a renamed field would pass for ever.
holds() {
    local value=$(figure "${1%%[<>]*}" "$2")
    [ -n "$value" ] || return 1
    case $1 in
    *'<='*) awk -v value="$value" -v bound="${1#*=}" 'BEGIN { exit !(value + 0 <= bound + 0) }' ;;
    *'>='*) awk -v value="$value" -v bound="${1#*=}" 'BEGIN { exit !(value + 0 >= bound + 0) }' ;;
    *) return 1 ;;
    esac
}

# The number at KEY or KEY.PART of a line of figures.
figure() {
    case $1 in
    *.*) sed -n "s/.*\"${1%%.*}\":{[^{}]*\"${1#*.}\":\(-\?[0-9][0-9.]*\).*/\1/p" "$2" ;;
    *) sed -n "s/.*\"$1\":\(-\?[0-9][0-9.]*\).*/\1/p" "$2" ;;
    esac
}

contains() {
    local word=$1
    shift
    [[ " $* " == *" $word "* ]]
}

report() {
    echo
    printf '%s\n' "scenario|bounds|took|what was broken" "${rows[@]}" |
        awk -F '|' '{ printf "%-26s %-12s %8s  %s\n", $1, $2, $3, $4 }'
    [ "$broken" -eq 0 ] || { echo "soak: $broken broken; figures and courses are in $OUT"; exit 1; }
    echo "soak: every bound held; figures are in $OUT"
    exit 0
}

main "$@"
