#!/bin/sh
# Puts schemathesis, the tester that is driven by our OpenAPI document, into .cache/bin.
name=schemathesis
. "$(dirname -- "$0")/common.sh"

# The version whose options the suite uses.
wanted='schemathesis>=4.32,<5'

tool=$cache/python/bin/schemathesis
if ! { [ -x "$tool" ] && "$tool" --version >/dev/null 2>&1; }; then
    python_environment
    quietly "$python" -m pip install --quiet "$wanted" || fail "cannot install schemathesis from the Python registry" \
        "make the registry reachable, or put an environment that has it at $cache/python"
fi
ln -sf "$tool" "$cache/bin/schemathesis"
say "$("$tool" --version | sed -n 's/.*ersion \([0-9.]*\).*/\1/p')"
