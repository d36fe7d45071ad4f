#!/bin/sh
# Puts what Python guests are built and tested with into .cache/bin: componentize-py and pytest.
name=guest-python
. "$(dirname -- "$0")/common.sh"

# The version that the template pins.
wanted=$(sed -n 's/^componentize-py==\([0-9.]*\).*/\1/p' "$root/tests/setup/requirements/componentize-py.txt")
grep -q "^componentize-py==$wanted\$" "$root/guest-sdk/python/examples/starter/requirements.txt" ||
    fail "the template does not pin componentize-py $wanted" "make it the version of tests/setup/requirements"

bin=$cache/python/bin
version_of() { "$1" --version 2>/dev/null | sed -n 's/^[a-z-]* \([0-9.]*\).*/\1/p'; }

if [ "$(version_of "$bin/componentize-py")" != "$wanted" ] || [ -z "$(version_of "$bin/pytest")" ]; then
    python_environment
    # schemathesis needs pytest, so its list has it.
    { install_pinned componentize-py && install_pinned schemathesis; } ||
        fail "cannot install componentize-py $wanted and pytest from the Python registry" \
            "make the registry reachable, and use Python 3.11 or newer" \
            "or put an environment with both at $cache/python"
fi
[ "$(version_of "$bin/componentize-py")" = "$wanted" ] ||
    fail "$bin/componentize-py is not version $wanted" "remove $cache/python, and run this again"
ln -sf "$bin/componentize-py" "$bin/pytest" "$cache/bin/"
say "componentize-py $wanted, pytest $(version_of "$bin/pytest")"
