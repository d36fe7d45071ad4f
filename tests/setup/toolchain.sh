#!/bin/sh
# Checks the Rust tool chain and the C compiler that its linker step needs. Installs nothing.
name=toolchain
. "$(dirname -- "$0")/common.sh"

wanted=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' "$root/Cargo.toml" | head -n 1)

command -v cargo >/dev/null 2>&1 && command -v rustc >/dev/null 2>&1 || fail "cargo or rustc is missing" \
    "install Rust $wanted or newer from https://rustup.rs, open a new shell, and run this again"
command -v cc >/dev/null 2>&1 || fail "the C compiler cc is missing; Rust links with it" \
    "install it: apt-get install build-essential   (or dnf install gcc, xcode-select --install)"

found=$(rustc --version | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p')
[ -n "$found" ] || fail "rustc --version prints no version" "run 'rustup default stable' and try again"
[ "${found%%.*}" -gt "${wanted%%.*}" ] ||
    { [ "${found%%.*}" -eq "${wanted%%.*}" ] && [ "${found#*.}" -ge "${wanted#*.}" ]; } ||
    fail "rustc $found is too old, $wanted is needed" "run: rustup update stable"

if [ "${1:-}" = --with-lints ]; then
    cargo fmt --version >/dev/null 2>&1 || fail "rustfmt is missing" "run: rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || fail "clippy is missing" "run: rustup component add clippy"
fi
say "rustc $found, $(cargo --version | cut -d' ' -f1,2), cc"
