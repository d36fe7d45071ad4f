#!/bin/sh
# Puts schemathesis, the tester that is driven by our OpenAPI document, into .cache/bin.
name=schemathesis
. "$(dirname -- "$0")/common.sh"

# The version whose options the suite uses.
wanted=$(sed -n 's/^schemathesis==\([0-9.]*\).*/\1/p' "$root/tests/setup/requirements/schemathesis.txt")

tool=$cache/python/bin/schemathesis
version_of() { "$1" --version 2>/dev/null | sed -n 's/.*ersion \([0-9.]*\).*/\1/p'; }

if [ "$(version_of "$tool")" != "$wanted" ]; then
    python_environment
    install_pinned schemathesis || fail "cannot install schemathesis $wanted from the Python registry" \
        "make the registry reachable, and use Python 3.11 or newer" \
        "or put an environment with schemathesis $wanted at $cache/python"
fi
[ "$(version_of "$tool")" = "$wanted" ] || fail "$tool is not schemathesis $wanted" "remove $cache/python, and run this again"
ln -sf "$tool" "$cache/bin/schemathesis"
say "$wanted"
