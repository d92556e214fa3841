#!/usr/bin/env bash
# The one place that knows which packages of the system Selvedge needs.
#
#   scripts/deps.sh build    what the build and the demo need
#   scripts/deps.sh test     what the tests with real components need
#   scripts/deps.sh lint     the cargo subcommands that `make lint` needs
#
# What is there already is left alone, wherever it came from. What is missing is installed with apt
# if this is root on Debian or Ubuntu, with a line for each step; otherwise it is named, and:
#   build, lint   fail;
#   test          fails with CI=true; elsewhere the tests concerned report themselves as skipped.
# No service is left running or enabled that this installation brought along.
set -euo pipefail
# Debian keeps administrators' commands where the PATH of others does not look.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# Builds with Rust 1.95. In the dev profile: a check of a second is not worth an optimised build.
readonly CARGO_DENY=0.20.2
readonly POLICY=/usr/sbin/policy-rc.d
readonly POLICY_MARK="# Written by Selvedge's scripts/deps.sh for the time of one installation."

main() {
    case "${1:-}" in
    build) build_deps ;;
    test) test_deps ;;
    lint) lint_deps ;;
    *)
        echo "usage: $0 build|test|lint" >&2
        exit 2
        ;;
    esac
}

# Each line: a package, and the check that tells whether what it brings is there.
build_deps() {
    need_rust
    missing=()
    need gcc has_c_compiler
    need libc6-dev has_c_compiler
    need protobuf-compiler has_command "${PROTOC:-protoc}"
    need libprotobuf-dev has_protobuf_includes
    need iproute2 has_command ip
    need nftables has_command nft
    provide "the build" || exit 1
}

test_deps() {
    missing=()
    need etcd-server has_command etcd
    need etcd-client has_command etcdctl
    need frr has_frr
    need iproute2 has_command ip
    need nftables has_command nft
    need iputils-ping has_command ping
    need graphviz has_command dot
    need wireguard-go has_command wireguard-go
    provide "the tests with real components" && return
    [ "${CI:-}" != true ] || exit 1
    say "The tests that need it are going to be skipped, by name."
}

lint_deps() {
    local component
    for component in fmt clippy; do
        cargo "$component" --version >/dev/null 2>&1 ||
            fail "cargo $component is missing; add it with: rustup component add rustfmt clippy"
    done
    if [ "$(cargo deny --version 2>/dev/null)" = "cargo-deny $CARGO_DENY" ]; then
        say "cargo-deny $CARGO_DENY is there"
        return
    fi
    say "installing cargo-deny $CARGO_DENY from crates.io (about a minute on two cores)"
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug "cargo-deny@$CARGO_DENY"
}

# --- what is missing -------------------------------------------------------------------------

need() {
    local package=$1
    shift
    "$@" || missing+=("$package")
}

has_command() { command -v "$1" >/dev/null; }

has_c_compiler() {
    local out ok=0
    out=$(mktemp)
    printf '#include <stdio.h>\nint main(void) { return 0; }\n' |
        "${CC:-cc}" -x c -o "$out" - 2>/dev/null || ok=1
    rm -f "$out"
    return $ok
}

# protoc without the well-known types builds nothing that imports them, and etcd's files do.
has_protobuf_includes() {
    local dir ok=0
    has_command "${PROTOC:-protoc}" || [ -e /usr/include/google/protobuf/descriptor.proto ] || return 1
    has_command "${PROTOC:-protoc}" || return 0
    dir=$(mktemp -d)
    printf 'syntax = "proto3";\nimport "google/protobuf/descriptor.proto";\n' >"$dir/probe.proto"
    "${PROTOC:-protoc}" -I"$dir" ${PROTOC_INCLUDE:+-I"$PROTOC_INCLUDE"} \
        --descriptor_set_out=/dev/null "$dir/probe.proto" 2>/dev/null || ok=1
    rm -rf "$dir"
    return $ok
}

has_frr() { [ -x /usr/lib/frr/bgpd ] && has_command vtysh; }

need_rust() {
    has_command cargo || fail "Rust is missing; see https://rustup.rs, or install rustc and cargo"
}

# --- installing it ---------------------------------------------------------------------------

# Installs what `missing` lists, for the purpose $1. Returns 1 if it is still missing.
provide() {
    local purpose=$1
    if [ ${#missing[@]} -eq 0 ]; then
        say "all there for $purpose"
        return 0
    fi
    say "missing for $purpose: ${missing[*]}"
    if ! has_command apt-get; then
        say "Install what these Debian packages contain, then run this again."
        return 1
    fi
    if [ "$(id -u)" != 0 ]; then
        say "Install them as root, then run this again: apt-get install --no-install-recommends ${missing[*]}"
        return 1
    fi
    install_quietly
}

install_quietly() {
    trap remove_policy EXIT
    put_policy
    say "apt-get install --no-install-recommends ${missing[*]}"
    if ! apt_install; then
        say "apt-get update (the package lists are absent or out of date)"
        apt-get -qq update || fail "apt-get update failed; is there a network?"
        apt_install || fail "apt-get could not install: ${missing[*]}; its words: $(tail -n 3 "$apt_log")"
    fi
    rm -f "$apt_log"
    retire_services
    remove_policy
    trap - EXIT
    say "installed: ${missing[*]}"
}

apt_install() {
    apt_log=${apt_log:-$(mktemp)}
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 \
        install --no-install-recommends "${missing[@]}" >"$apt_log" 2>&1
}

# Debian starts a service as soon as it is installed, unless policy-rc.d forbids it. One that the
# administrator wrote stays; one that a killed run left behind is ours and goes.
put_policy() {
    if [ -e "$POLICY" ] && ! grep -qF "$POLICY_MARK" "$POLICY"; then
        return 0
    fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" >"$POLICY"
    chmod 755 "$POLICY"
}

remove_policy() {
    if [ -e "$POLICY" ] && grep -qF "$POLICY_MARK" "$POLICY"; then
        rm -f "$POLICY"
    fi
}

# Stops and disables the services of the packages just installed. `missing` holds exactly those:
# what was installed before keeps the state that its owner gave it.
retire_services() {
    local package unit
    for package in "${missing[@]}"; do
        for unit in $(dpkg -L "$package" | sed -n 's#^\(/usr\)\?/lib/systemd/system/\([^/@]*\.service\)$#\2#p'); do
            if has_command systemctl; then
                retire_by_systemd "$unit"
            else
                retire_by_debian "$package" "$unit"
            fi
        done
    done
}

retire_by_systemd() {
    local unit=$1
    if [ -d /run/systemd/system ] && systemctl --quiet is-active "$unit"; then
        systemctl stop "$unit"
        say "stopped $unit, which the installation had started"
    fi
    if systemctl --quiet is-enabled "$unit" 2>/dev/null; then
        systemctl disable "$unit" >/dev/null 2>&1
        say "disabled $unit, which the installation had enabled"
    fi
}

# A container without systemd: nothing runs, but what is enabled would with the next init system.
retire_by_debian() {
    local unit=$2
    # deb-systemd-helper wants to be called for a package.
    local -x DPKG_MAINTSCRIPT_PACKAGE=$1
    deb-systemd-helper --quiet is-enabled "$unit" || return 0
    deb-systemd-helper disable "$unit" >/dev/null 2>&1
    if [ -e "/etc/init.d/${unit%.service}" ]; then
        update-rc.d "${unit%.service}" disable
    fi
    say "disabled $unit, which the installation had enabled"
}

say() { echo "deps: $*"; }

fail() {
    echo "deps: $*" >&2
    exit 1
}

main "$@"
