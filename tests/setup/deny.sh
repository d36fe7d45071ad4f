#!/bin/sh
# Checks the dependencies against deny.toml. Advisories come from a git repository, which no package registry serves:
#   FOLDSTREAM_ADVISORY_DB   the URL of a copy of it, with a branch main, such as https://git.example.org/advisory-db
#   FOLDSTREAM_ADVISORIES    "required" makes it a failure that they could not be checked; else that is said plainly,
#                            and nothing fails, since nothing was found either
name=deny
. "$(dirname -- "$0")/common.sh"
cd "$root"

case ${FOLDSTREAM_ADVISORIES:-} in '' | required) ;; *)
    fail "FOLDSTREAM_ADVISORIES=$FOLDSTREAM_ADVISORIES is unknown" "use required, or leave it out" ;;
esac

# tests/smith is no member of the workspace.
for manifest in Cargo.toml tests/smith/Cargo.toml; do
    "$cache/bin/cargo-deny" --log-level error --locked --manifest-path "$manifest" --config "$root/deny.toml" \
        check --hide-inclusion-graph bans licenses sources ||
        fail "dependencies of $manifest break deny.toml" \
            "see above; change the dependency, or deny.toml with a reason next to it"
done

database=${FOLDSTREAM_ADVISORY_DB:-$(sed -n 's/^db-urls = \["\(.*\)"\]/\1/p' deny.toml)}
reachable() {
    command -v git >/dev/null 2>&1 && GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote --quiet "$database" HEAD >/dev/null 2>&1
}

if reachable; then
    sed "s|^db-urls = .*|db-urls = [\"$database\"]|" deny.toml >"$cache/deny.toml"
    "$cache/bin/cargo-deny" --log-level error --locked --config "$cache/deny.toml" check --hide-inclusion-graph advisories ||
        fail "a dependency has an advisory, or they cannot be read" \
        "see above; update the dependency, or say in deny.toml why the advisory does not concern us"
    note_unchecked
    say "bans, licences, sources and advisories are fine"
elif [ "${FOLDSTREAM_ADVISORIES:-}" = required ]; then
    fail "advisories were NOT checked: $database cannot be reached" \
        "make it reachable, or set FOLDSTREAM_ADVISORY_DB to the URL of a copy"
else
    say "bans, licences and sources are fine"
    note_unchecked "advisories were NOT checked: $database cannot be reached;" \
        "to check them, set FOLDSTREAM_ADVISORY_DB to the URL of a copy"
fi
