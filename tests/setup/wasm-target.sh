#!/bin/sh
# Gives the compiler the standard library of wasm32-unknown-unknown, for which guests are built.
#
# Two ways: `rustup target add`, and where that is not possible Debian's rustc-web with rust-web-src, from which
# `foldstream build` compiles the standard library itself. FOLDSTREAM_WASM_TARGET=rustup or =debian forces one.
name=wasm-target
. "$(dirname -- "$0")/common.sh"

target=wasm32-unknown-unknown
way=${FOLDSTREAM_WASM_TARGET:-any}
debian_source=/usr/lib/rustlib/src/rust/library/std/Cargo.toml
case $way in any | rustup | debian) ;; *)
    fail "FOLDSTREAM_WASM_TARGET=$way is unknown" "use rustup, debian, or leave it out" ;;
esac

target_installed() { ls "$(rustc --print sysroot)/lib/rustlib/$target/lib"/libstd-*.rlib >/dev/null 2>&1; }
debian_installed() { [ -x /usr/bin/rustc ] && [ -f "$debian_source" ]; }

by_rustup() {
    if target_installed; then
        say "$target is installed"
        return 0
    fi
    command -v rustup >/dev/null 2>&1 || return 1
    quietly rustup target add "$target" || return 1
    say "$target added with rustup"
}

by_debian() {
    if ! debian_installed; then
        command -v apt-get >/dev/null 2>&1 || return 1
        [ "$(id -u)" -eq 0 ] || return 1
        quietly apt-get install -y --no-install-recommends rustc-web rust-web-src ||
            { quietly apt-get update && quietly apt-get install -y --no-install-recommends rustc-web rust-web-src; } ||
            return 1
    fi
    say "$target from Debian's rustc-web and rust-web-src; guests compile the standard library themselves"
}

if [ "$way" != debian ] && by_rustup; then exit 0; fi
if [ "$way" != rustup ] && by_debian; then exit 0; fi
fail "there is no standard library for $target (way tried: $way)" \
    "with rustup:                  rustup target add $target" \
    "without, on Debian, as root:  apt-get install rustc-web rust-web-src"
