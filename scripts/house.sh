#!/usr/bin/env bash
# The rules of the house that no lint of the compiler sees. Ends with an error that names each breach.
set -euo pipefail
cd "$(dirname "$0")/.."

breaches=0
breach() {
    echo "house: $*" >&2
    breaches=$((breaches + 1))
}

# The cores have no runtime, no socket and no file: whatever brings one does not get in by a detour.
for core in selvedge-model selvedge-mesh selvedge-topology selvedge-gateway; do
    while IFS= read -r crate; do
        breach "$core depends on $crate; a core does no I/O"
    done < <(cargo tree --quiet --package "$core" --edges normal --prefix none |
        grep -oE '^(tokio|mio|socket2|quinn|rtnetlink|nix|reqwest|axum|tracing-subscriber) ' | sort -u)
done

# Unsafe code lives in crates/host, each block with the reason why it is sound.
while IFS= read -r hit; do
    breach "unsafe outside crates/host: $hit"
done < <(grep -rnE --include='*.rs' '^[^/"]*\bunsafe (\{|fn|impl|extern)' crates testing | grep -v '^crates/host/' || true)

# Every crate takes the lints of the workspace; crates/host keeps a table of its own for its unsafe code.
while IFS= read -r manifest; do
    [ "$manifest" = crates/host/Cargo.toml ] || grep -A1 '^\[lints\]' "$manifest" | grep -q '^workspace = true' ||
        breach "$manifest does not take the lints of the workspace"
done < <(ls crates/*/Cargo.toml testing/*/Cargo.toml)

# A long file is looked at twice, not forbidden. Tests stand last and do not count.
while IFS= read -r file; do
    lines=$(sed '/^#\[cfg(test)\]/,$d' "$file" | wc -l)
    [ "$lines" -le 800 ] || echo "house: note: $file has $lines lines before its tests"
done < <(find crates testing -path '*/src/*.rs')

[ "$breaches" -eq 0 ] || exit 1
echo "house: in order"
