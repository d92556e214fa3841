#!/usr/bin/env bash
# Runs the tests and the scenarios, and ends by saying what ran and what was skipped, by name.
#
#   scripts/test.sh              cargo test, then the scenarios
#   scripts/test.sh scenarios    the scenarios only
#
# A test that cannot run here prints a line that starts with "skipped" and gives its name and the
# reason. With CI=true nothing may be skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

readonly OUT=target/test
failed=()
skipped=()
ran=()

main() {
    mkdir -p "$OUT"
    [ "${1:-}" = scenarios ] || unit_tests
    scenarios
    report
}

unit_tests() {
    local log=$OUT/cargo-test.log
    # --show-output, or else a test that skips itself would do so unseen.
    cargo test --workspace --no-fail-fast -- --show-output 2>&1 | tee "$log" || failed+=("cargo test")
    ran+=("cargo test: $(count "$log")")
    while IFS= read -r line; do
        skipped+=("$line")
    done < <(grep -iE '^ *skip(ped|ping)?[: ]' "$log" | sed 's/^ *//' | sort -u;
             sed -n 's/^test \(.*\) \.\.\. ignored/ignored: \1/p' "$log")
}

# The sums of cargo's own closing lines, one per test binary.
count() {
    awk '/^test result:/ { passed += $4; failures += $6; ignored += $8; binaries += 1 }
         END { printf "%d passed, %d failed, %d ignored in %d test binaries", passed, failures, ignored, binaries }' "$1"
}

# Every command ends with one line of JSON and exits non-zero when a bound that it states is broken.
scenarios() {
    if ! cargo build --release --workspace; then
        failed+=("cargo build --release: no scenario could run")
        return
    fi
    scenario sim-gateway selvedge-sim gateway --networks 5000 --gateways 8 --seed 1 --json
    scenario sim-chaos selvedge-sim gateway --chaos --seeds 0..100 --networks 500 --json
    scenario sim-mesh-chaos selvedge-sim mesh --chaos --seeds 0..100 --json
    if [ "$(id -u)" != 0 ]; then
        skipped+=("skipped: demo, demo-etcd-frr and all of lab-*: they make network namespaces, and need root")
        return
    fi
    scenario demo selvedge demo --seconds 30 --json
    # The bounds tell what works from what does not, also on a busy machine; those that are to be
    # reached are in scripts/soak.sh.
    scenario lab-mesh-restart selvedge-lab mesh-restart --runs 3 --max-outage-ms 10000 --json
    scenario lab-mesh-leave selvedge-lab mesh-leave --runs 1 --max-gone-ms 10000 --json
    scenario lab-mesh-roam selvedge-lab mesh-roam --runs 1 --max-outage-ms 15000 --json
    scenario lab-mesh-speed selvedge-lab mesh-speed --seconds 2 --runs 3 --min-ratio 0.3 --json
    scenario lab-mesh-clients selvedge-lab mesh-clients --cuts 1 --max-joined-ms 60000 --max-direct-ms 120000 --max-outage-ms 15000 --json
    scenario lab-mesh-exits selvedge-lab mesh-exits --users 12 --runs 1 --max-outage-ms 15000 --json
    scenario lab-mesh-bridges selvedge-lab mesh-bridges --runs 1 --max-reroute-ms 15000 --json
    if [ ! -x /usr/lib/frr/bgpd ] || ! command -v etcd >/dev/null; then
        skipped+=("skipped: demo-etcd-frr and all of lab-* but lab-mesh-*: etcd or FRR is missing")
        return
    fi
    scenario demo-etcd-frr selvedge demo --seconds 10 --store etcd --fabric frr --json
    scenario lab-migrate selvedge-lab migrate --networks 20 --moves 10 --json
    scenario lab-failover selvedge-lab failover --networks 20 --gateways 3 --runs 4 --fault cut --max-outage-ms 2500 --json
    scenario lab-kill selvedge-lab failover --networks 20 --gateways 3 --runs 1 --fault kill --max-outage-ms 2500 --json
    scenario lab-uplink selvedge-lab failover --networks 20 --gateways 3 --runs 1 --fault uplink --max-outage-ms 2500 --json
    scenario lab-witness selvedge-lab failover --networks 20 --witness --runs 2 --fault cut --max-outage-ms 2500 --json
    scenario lab-restart selvedge-lab restart --networks 20 --runs 2 --json
    scenario lab-bgpd selvedge-lab bgpd --networks 20 --runs 1 --json
    scenario lab-majority selvedge-lab majority --networks 20 --json
    scenario lab-mesh-overlay selvedge-lab mesh-overlay --networks 5 --runs 2 --max-outage-ms 5000 --json
    scenario lab-store selvedge-lab store --networks 2000 --runs 1 --json
}

# Runs one: its name, the binary, and the arguments.
scenario() {
    local name=$1 began=$SECONDS
    shift
    echo "scenario $name: $*"
    if "target/release/$1" "${@:2}" >"$OUT/$name.out" 2>"$OUT/$name.err"; then
        ran+=("$name ($((SECONDS - began)) s): $(tail -n 1 "$OUT/$name.out")")
    else
        failed+=("$name: exit code $?, see $OUT/$name.out and $OUT/$name.err")
        tail -n 20 "$OUT/$name.err" "$OUT/$name.out" >&2
    fi
}

report() {
    echo
    printf 'ran:     %s\n' "${ran[@]}"
    [ ${#skipped[@]} -eq 0 ] && echo "skipped: nothing" || printf '%s\n' "${skipped[@]}"
    if [ ${#failed[@]} -gt 0 ]; then
        printf 'FAILED:  %s\n' "${failed[@]}"
        exit 1
    fi
    if [ "${CI:-}" = true ] && printf '%s\n' "${skipped[@]}" | grep -q '^skip'; then
        echo "FAILED:  with CI=true nothing may be skipped"
        exit 1
    fi
    echo "test: all well"
}

main "$@"
