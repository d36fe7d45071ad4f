#!/bin/sh
# Puts promtool into .cache/bin: one on PATH, else the one in Debian's prometheus package, unpacked without installing.
name=promtool
. "$(dirname -- "$0")/common.sh"

take() {
    "$1" --version >/dev/null 2>&1 || return 1
    [ "$1" -ef "$cache/bin/promtool" ] || ln -sf "$1" "$cache/bin/promtool"
    say "$("$1" --version 2>&1 | sed -n 's/^promtool, version \([^ ]*\).*/\1/p') ($2)"
    exit 0
}

[ ! -x "$cache/bin/promtool" ] || take "$cache/bin/promtool" "cached" || true
on_path=$(command -v promtool 2>/dev/null || true)
[ -z "$on_path" ] || take "$on_path" "on PATH" || true

hint="install it on PATH: apt-get install prometheus, brew install prometheus, or https://prometheus.io/download"
command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || fail "promtool is missing" "$hint"
folder=$cache/promtool
rm -rf "$folder"
mkdir -p "$folder"
download() { (cd "$folder" && apt-get download prometheus); }
quietly download || { quietly apt-get update && quietly download; } || fail "cannot download Debian's prometheus" "$hint"
dpkg-deb -x "$folder"/prometheus_*.deb "$folder" && rm -f "$folder"/prometheus_*.deb
take "$folder/usr/bin/promtool" "from Debian's prometheus" || fail "the promtool of Debian's prometheus does not run" "$hint"
