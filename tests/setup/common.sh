# What the set-up scripts share; sourced, never run. Every script is idempotent, prints one line of progress, and
# writes nothing outside .cache/ of the repository unless it says so. POSIX sh.

set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cache=$root/.cache
mkdir -p "$cache/bin"

# One line of progress: "name: what was found or done".
say() { printf '%s: %s\n' "$name" "$*"; }

# Stops, saying what is wrong and what to do next.
fail() {
    printf '%s: %s\n' "$name" "$1" >&2
    shift
    for line in "$@"; do printf '    %s\n' "$line" >&2; done
    exit 1
}

# Runs a command quietly; shows what it printed only when it fails.
quietly() {
    quietly_log=$cache/$name.log
    if "$@" >"$quietly_log" 2>&1; then return 0; fi
    tail -n 30 "$quietly_log" >&2
    return 1
}

# Notes what could not be checked, for `make test` to say once more at its end; without words, it was checked.
note_unchecked() {
    if [ $# -eq 0 ]; then
        rm -f "$cache/not-checked/$name"
        return 0
    fi
    mkdir -p "$cache/not-checked"
    say "$*"
    say "$*" >"$cache/not-checked/$name"
}

# Makes the one virtual environment for tools from the Python registry, and sets $python to its interpreter.
python_environment() {
    python=$cache/python/bin/python
    if [ -x "$python" ] && "$python" -m pip --version >/dev/null 2>&1; then return 0; fi
    command -v python3 >/dev/null 2>&1 || fail "python3 is missing" \
        "install it: apt-get install python3 python3-venv   (or dnf install python3, brew install python)"
    quietly python3 -m venv "$cache/python" || fail "python3 cannot make a virtual environment" \
        "install what it lacks: apt-get install python3-venv"
}

# Installs what a file of requirements/ lists: exactly those versions, and only files with the hashes listed there.
# Further arguments go to pip.
install_pinned() {
    pinned=$root/tests/setup/requirements/$1.txt
    shift
    quietly "$python" -m pip install --quiet --require-hashes --no-deps --only-binary :all: "$@" -r "$pinned"
}
