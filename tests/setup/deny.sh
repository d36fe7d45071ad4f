#!/bin/sh
# Checks the dependencies against deny.toml. Advisories need a database from the network: where it cannot be reached
# that is said plainly and nothing fails, since nothing was found either.
name=deny
. "$(dirname -- "$0")/common.sh"
cd "$root"

"$cache/bin/cargo-deny" --log-level error check --hide-inclusion-graph bans licenses sources ||
    fail "dependencies break deny.toml" "see above; change the dependency, or deny.toml with a reason beside it"

database=$(sed -n 's/^db-urls = \["\(.*\)"\]/\1/p' deny.toml)
if command -v git >/dev/null 2>&1 && GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote --quiet "$database" HEAD >/dev/null 2>&1; then
    "$cache/bin/cargo-deny" --log-level error check --hide-inclusion-graph advisories ||
        fail "a dependency has an advisory" "see above; update it, or say in deny.toml why it does not concern us"
    say "bans, licences, sources and advisories are fine"
else
    say "bans, licences and sources are fine; advisories NOT checked: $database cannot be reached"
fi
