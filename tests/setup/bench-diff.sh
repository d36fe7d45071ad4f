#!/bin/sh
# Benches this tree and another commit in turns, and compares: bench-diff.sh FOLDER COMMIT PAIRS [OPTION...]
# The options are those of the bench. The other commit is checked out and built in the folder, with its own bench.
set -eu

folder=$1 base=$2 pairs=$3
shift 3
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
base=$(git rev-parse --verify "$base^{commit}")

# A tree of its own, which a later comparison with another commit moves.
if [ -e "$folder/tree/.git" ]; then
    git -C "$folder/tree" checkout --quiet --detach "$base"
else
    git worktree prune
    git worktree add --quiet --detach "$folder/tree" "$base"
fi
rm -f "$folder"/before-*.json "$folder"/after-*.json

build() {
    cargo build --locked --workspace --release --bin foldstream --bench foldstream
}
before() {
    (cd "$folder/tree" && CARGO_TARGET_DIR="$folder/built" "$@")
}
before build
build

pair=1
while [ "$pair" -le "$pairs" ]; do
    before cargo bench --locked --workspace --bench foldstream -- "$@" --json "$folder/before-$pair.json"
    cargo bench --locked --workspace --bench foldstream -- "$@" --json "$folder/after-$pair.json"
    pair=$((pair + 1))
done
cargo bench --locked --workspace --bench foldstream -- --diff "$folder"
