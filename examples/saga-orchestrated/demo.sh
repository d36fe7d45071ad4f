#!/bin/sh
# Orders of all fates, by orchestration and by choreography, on the embedded log: `make demo DEMO=saga`.
#
#   demo.sh FOLDSTREAM MODULES    the program, and the folder for the modules that it builds

set -eu
foldstream=$1
modules=$2
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
folder=$(mktemp -d)
host=
trap 'test -z "$host" || kill "$host" 2>/dev/null; wait; rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM

say() { printf '\n# %s\n' "$*"; }
# Shows a command, and runs it.
run() {
    printf '\n$ foldstream'
    for word in "$@"; do case $word in *[*\{\ ]*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac done
    printf '\n'
    "$foldstream" "$@"
}

start() {
    rm -rf "$folder/data" "$folder/host.log"
    : >"$folder/host.log"
    "$foldstream" serve --data "$folder/data" --listen 127.0.0.1:0 >"$folder/host.log" 2>&1 &
    host=$!
    tries=0
    until url=$(grep -o 'http://127[^ "]*' "$folder/host.log" | head -n 1) && test -n "$url"; do
        tries=$((tries + 1))
        test $tries -lt 300 && kill -0 "$host" 2>/dev/null || { cat "$folder/host.log" >&2; exit 1; }
        sleep 0.1
    done
    export FOLDSTREAM_URL="$url"
}

stop() { kill "$host"; wait "$host" || true; host=; }

# How many instances have a status.
count() { "$foldstream" sagas list "$1" --status "$2" --output ndjson --quiet | wc -l; }

# Waits until nothing is under way, except what is stuck.
settle() {
    tries=0
    until test "$(count "$1" running)" -eq 0 && test "$(count "$1" compensating)" -eq 0; do
        tries=$((tries + 1))
        test $tries -lt 600 || { "$foldstream" sagas list "$1"; exit 1; }
        sleep 0.1
    done
}

# Builds a module of an example, and allows it to publish what it declares.
deploy() {
    module=$modules/$(basename "$1").wasm
    "$foldstream" build "$1" --out "$module" --quiet >"$folder/build.log" 2>&1 || { cat "$folder/build.log" >&2; exit 1; }
    shift
    grants=
    for subject in "$@"; do grants="$grants --allow-publish $subject@events"; done
    set -f
    # shellcheck disable=SC2086
    "$foldstream" deploy "$module" $grants --wait
    set +f
}

participants() {
    deploy "$here/../saga-participants" \
        'payment.*.charged' 'payment.*.declined' 'payment.*.unavailable' 'payment.*.refunded' 'payment.*.refund-failed' \
        'stock.*.reserved' 'stock.*.out-of-stock' 'stock.*.released' 'shipping.*.sent' 'shipping.*.refused'
}

# What became of the orders, and what an operator does about the one that is stuck.
fates() {
    run events import "$here/events.ndjson"
    # The others are quicker.
    sleep 2
    say "Those with a card that does not answer wait for payment, and since when is known:"
    run sagas list "$1" --status running --step payment
    settle "$1"
    say "Of order 1009 the money can't be given back. That is for a person:"
    run sagas list "$1"
    say "Somebody pays it back by hand, and says so:"
    run events append orders.1009.skip '{}'
    tries=0
    until test "$(count "$1" stuck)" -eq 0; do
        tries=$((tries + 1))
        test $tries -lt 300 || exit 1
        sleep 0.1
    done
    say "In the end each order is complete, or all that was done for it is undone:"
    run sagas list "$1" --status completed
    run sagas list "$1" --status compensated
    run show "$1"
    say "The events of order 1007, which nobody can deliver:"
    run events read --subject '*.1007.*'
}

say "Orchestration: one saga asks payment, stock and shipping."
start
participants
deploy "$here" 'payment.*.charge' 'payment.*.refund' 'stock.*.reserve' 'stock.*.release' 'shipping.*.send' \
    'orders.*.fulfilled' 'orders.*.rejected' 'orders.*.stuck'
fates order-fulfilment
stop

say "Choreography: checkout, stock and shipping react to each other's events."
start
participants
deploy "$here/../saga-choreographed/checkout" 'payment.*.charge' 'payment.*.refund' 'orders.*.paid' 'orders.*.rejected'
deploy "$here/../saga-choreographed/stock" 'stock.*.reserved' 'stock.*.out-of-stock' 'stock.*.released'
deploy "$here/../saga-choreographed/shipping" 'shipping.*.sent' 'shipping.*.refused'
fates saga-checkout
stop
