#!/bin/sh
# Puts what TypeScript guests are built and tested with into .cache: exactly what the lockfile of the template lists, by
# the hashes there. npm's own cache in .cache/npm keeps it all, so that the suite can install a new project as a user
# does, without a network.
name=guest-typescript
. "$(dirname -- "$0")/common.sh"

# The oldest Node that the template's tools run on.
oldest=20
template=$root/guest-sdk/typescript/examples/starter
folder=$cache/node

command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1 || fail "node and npm are missing" \
    "install Node $oldest or newer: https://nodejs.org, or apt-get install nodejs npm"
version=$(node --version | sed 's/^v//')
[ "${version%%.*}" -ge "$oldest" ] || fail "node $version is too old" "install Node $oldest or newer"

if ! cmp -s "$template/package-lock.json" "$folder/node_modules/.installed"; then
    mkdir -p "$folder"
    cp "$template/package.json" "$template/package-lock.json" "$folder/"
    cd "$folder"
    # No script of a package runs.
    quietly npm ci --cache "$cache/npm" --ignore-scripts --no-audit --no-fund ||
        fail "npm cannot install what $template/package-lock.json lists" "make the npm registry reachable"
    cp "$template/package-lock.json" "$folder/node_modules/.installed"
fi
for tool in esbuild componentize-qjs tsx tsc; do ln -sf "$folder/node_modules/.bin/$tool" "$cache/bin/$tool"; done
say "node $version, esbuild $("$cache/bin/esbuild" --version), $(
    sed -n 's/^ *"componentize-qjs": "\(.*\)",$/componentize-qjs \1/p' "$template/package.json"
)"
