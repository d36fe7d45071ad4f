#!/bin/sh
# Puts what C guests are built and tested with into .cache/bin: zig, whose C compiler has a C library for WebAssembly, by
# the wheel ziglang of the Python registry.
name=guest-c
. "$(dirname -- "$0")/common.sh"

wanted=$(sed -n 's/^ziglang==\([0-9.]*\).*/\1/p' "$root/tests/setup/requirements/ziglang.txt")
zig=$cache/zig/ziglang/zig
if [ "$("$zig" version 2>/dev/null)" != "$wanted" ]; then
    python_environment
    rm -rf "$cache/zig"
    install_pinned ziglang --target "$cache/zig" || fail "cannot install ziglang $wanted from the Python registry" \
        "make the registry reachable, or put zig $wanted at $zig"
fi
[ "$("$zig" version)" = "$wanted" ] || fail "$zig is not version $wanted" "remove $cache/zig, and run this again"
ln -sf "$zig" "$cache/bin/zig"
say "zig $wanted"
