#!/bin/sh
# Puts cargo-deny into .cache/bin: one on PATH, else built from crates.io, which takes minutes once.
name=cargo-deny
. "$(dirname -- "$0")/common.sh"

# The version that is built. crates.io never changes a version, and cargo checks what it sends by its hash.
wanted=0.20.2

take() {
    version=$("$1" --version 2>/dev/null | sed -n 's/^cargo-deny \([0-9.]*\).*/\1/p')
    rest=${version#*.}
    [ -n "$version" ] && [ "${rest%%.*}" -ge 20 ] || return 1
    [ "$1" -ef "$cache/bin/cargo-deny" ] || ln -sf "$1" "$cache/bin/cargo-deny"
    say "$version ($2)"
    exit 0
}

[ ! -x "$cache/bin/cargo-deny" ] || take "$cache/bin/cargo-deny" "cached" || true
on_path=$(command -v cargo-deny 2>/dev/null || true)
[ -z "$on_path" ] || take "$on_path" "on PATH" || true

say "building $wanted from crates.io, once; this takes some minutes"
# Unoptimised: it runs for a second and is built on every new machine.
quietly env CARGO_TARGET_DIR="$cache/cargo-deny-target" CARGO_PROFILE_DEV_DEBUG=0 \
    cargo install --locked --debug --root "$cache/cargo-deny" --version "=$wanted" cargo-deny || fail \
    "cannot build cargo-deny $wanted" "install it on PATH: cargo install --locked --version $wanted cargo-deny"
rm -rf "$cache/cargo-deny-target"
take "$cache/cargo-deny/bin/cargo-deny" "built" || fail "the cargo-deny that was built does not run"
