#!/bin/sh
# Compiles the SDK with the oldest Rust that it promises, natively and for Wasm. Clippy knows which functions are newer,
# but not which rules of the language are. rustup puts that version into .cache/rustup.
#   FOLDSTREAM_MSRV   "required" makes it a failure that this could not be checked
name=msrv
. "$(dirname -- "$0")/common.sh"
cd "$root"

case ${FOLDSTREAM_MSRV:-} in '' | required) ;; *)
    fail "FOLDSTREAM_MSRV=$FOLDSTREAM_MSRV is unknown" "use required, or leave it out" ;;
esac
wanted=$(sed -n 's/^rust-version = "\([0-9.]*\)"$/\1/p' guest-sdk/rust/Cargo.toml)
wasm=wasm32-unknown-unknown

not_checked() {
    [ "${FOLDSTREAM_MSRV:-}" != required ] || fail "the SDK was NOT compiled with Rust $wanted: $1" "$2"
    note_unchecked "the SDK was NOT compiled with Rust $wanted: $1"
    exit 0
}

command -v rustup >/dev/null 2>&1 || not_checked "rustup is missing" "install it from https://rustup.rs"
export RUSTUP_HOME="$cache/rustup"
if ! rustup run "$wanted" rustc --version >/dev/null 2>&1; then
    quietly rustup toolchain install "$wanted" --profile minimal --target "$wasm" --no-self-update ||
        not_checked "rustup cannot fetch it" "see above; make https://static.rust-lang.org reachable"
fi

target=${CARGO_TARGET_DIR:-$root/target}/msrv
for platform in "" "--target $wasm"; do
    # shellcheck disable=SC2086 # an empty platform is no argument
    rustup run "$wanted" cargo check --locked --quiet --package foldstream-sdk --lib --target-dir "$target" $platform ||
        fail "the SDK does not compile with Rust $wanted" \
        "see above; write it differently, or raise rust-version in guest-sdk/rust/Cargo.toml"
done
note_unchecked
say "the SDK compiles with Rust $wanted"
