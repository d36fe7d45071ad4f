# Everything a developer does here; plain `make` lists the targets. tests/setup/ fetches missing tools into .cache/.

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# Cargo honours CARGO_TARGET_DIR; the recipes need it to find the binaries.
target := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
setup := tests/setup
# .cache/bin comes last, so that installed tools win.
export PATH := $(PATH):$(CURDIR)/.cache/bin

# DEMO=once exits when it is done, for scripts and tests; DEMO=saga shows sagas instead.
DEMO ?= stay
# Tests of the suite that run at once. They mostly wait for servers, so there may be more of them than cores.
SUITE_THREADS ?= 4
# Narrows the suite: make suite ONLY=crash
ONLY ?=
# Options of a long chaos run: make chaos CHAOS_MINUTES=120, or CHAOS_KILLS=500, or CHAOS_SEED=7 to see it again
CHAOS_SEED ?=
CHAOS_KILLS ?=
CHAOS_MINUTES ?= $(if $(CHAOS_KILLS),,120)
# Options of a long fuzz run: make fuzz FUZZ_TARGET=config FUZZ_MINUTES=60 FUZZ_SEED=1000000, or FUZZ_INPUTS=100000. The
# targets are the files of tests/fuzz; without one, each runs for as long.
FUZZ_TARGET ?=
FUZZ_INPUTS ?=
FUZZ_MINUTES ?= 60
FUZZ_SEED ?= 1
# Options of the bench: make bench BENCH="--events 100000"
BENCH ?=
# Options of a comparison: make bench-diff BASE=v0.1.0 PAIRS=6 BENCH="--only replay --rounds 1"
BASE ?= HEAD^
PAIRS ?= 6

.PHONY: help demo test chaos fuzz bench bench-diff build release fmt lint doc deny msrv clean
.PHONY: demo-totals demo-saga setup-demo setup-test fmt-check units doctests guests suite

## help: this list
help:
	@echo 'make <target>:'
	@sed -n 's/^## \([a-z-]*\): /  \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-10s %s\n", $$1, $$2 }'

## demo: build, then run order-totals on the embedded log with sample events, until Ctrl-C (DEMO=once exits when done, DEMO=saga shows sagas)
demo: demo-$(if $(filter saga,$(DEMO)),saga,totals)

demo-totals: setup-demo build
	$(target)/debug/foldstream build examples/order-totals --out $(target)/guests/order-totals.wasm
	$(target)/debug/foldstream demo --module $(target)/guests/order-totals.wasm \
	    --events examples/order-totals/events.ndjson \
	    --query top-customers --arguments '{"limit": 5}' $(if $(filter once,$(DEMO)),--once)

demo-saga: setup-demo build
	sh examples/saga-orchestrated/demo.sh $(target)/debug/foldstream $(target)/guests

## test: everything that CI checks, cheapest checks first; it ends with what could not be checked
test: setup-test fmt-check lint doc deny msrv units doctests suite
	@cat .cache/not-checked/* 2>/dev/null || true

## chaos: kill and break everything for hours, and check every answer (CHAOS_MINUTES=120, CHAOS_KILLS=, CHAOS_SEED=)
chaos: setup-demo
	@sh $(setup)/nats-server.sh
	cargo build --locked --workspace --bin foldstream
	CHAOS_SEED=$(CHAOS_SEED) CHAOS_KILLS=$(CHAOS_KILLS) CHAOS_MINUTES=$(CHAOS_MINUTES) \
	    cargo test --locked --workspace --test chaos -- --nocapture

## fuzz: draw from a seed what clients send and disks return, and check that all survives (FUZZ_TARGET=, FUZZ_MINUTES=60, FUZZ_INPUTS=, FUZZ_SEED=1)
fuzz: setup-demo build
	FUZZ_SEED=$(FUZZ_SEED) FUZZ_MINUTES=$(FUZZ_MINUTES) FUZZ_INPUTS=$(FUZZ_INPUTS) \
	    cargo test --locked --workspace --test fuzz -- --nocapture --test-threads 1 $(addsuffix ::,$(FUZZ_TARGET))

## bench: replay, latency, deployment and memory side by side; a table, and JSON in the target folder
bench: setup-demo
	@sh $(setup)/nats-server.sh
	cargo build --locked --workspace --release --bin foldstream --bench foldstream
	cargo bench --locked --workspace --bench foldstream -- $(BENCH)

## bench-diff: bench this tree and another commit in turns; a table with ratios and confidence (BASE=HEAD^, PAIRS=6, BENCH=)
bench-diff: setup-demo
	@sh $(setup)/nats-server.sh
	sh $(setup)/bench-diff.sh '$(target)/bench-diff' '$(BASE)' '$(PAIRS)' $(BENCH)

# --locked uses exactly the versions and hashes of Cargo.lock. Every command names the whole workspace, and a target if it
# needs only one: cargo chooses the features of dependencies by the packages that are named, and another choice would
# compile them again. For the same reason a release is built together with the bench.

## build: build the host and its command line, with the profile of demo and tests
build:
	cargo build --locked --workspace --bin foldstream

## release: build the optimised program; stripped in dist/ of the target folder, its debug information in a file next to it
release: setup-demo
	cargo build --locked --workspace --release --bin foldstream --bench foldstream
	mkdir -p $(target)/dist
	objcopy --only-keep-debug --compress-debug-sections $(target)/release/foldstream $(target)/dist/foldstream.debug
	cd $(target)/dist && objcopy --strip-all --add-gnu-debuglink=foldstream.debug ../release/foldstream foldstream

## fmt: format all code
fmt:
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

## lint: clippy on everything; a warning is an error
lint:
	cargo clippy --locked --workspace --all-targets --quiet -- -D warnings

## doc: the documentation of all crates; a warning is an error
doc:
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --quiet

## deny: check licences, sources and bans of dependencies, and advisories if their database can be reached
deny:
	@sh $(setup)/cargo-deny.sh
	@sh $(setup)/deny.sh

## msrv: compile the SDK with the oldest Rust that it promises, if rustup can fetch that
msrv:
	@sh $(setup)/msrv.sh

units:
	cargo test --locked --workspace --lib --bins --quiet

doctests:
	cargo test --locked --workspace --doc --quiet

## suite: the suite alone, on a real nats-server (ONLY=crash narrows it)
suite: build
	cargo test --locked --workspace --test '*' -- --test-threads $(SUITE_THREADS) $(ONLY)

## clean: remove what was built; tools in .cache/ stay
clean:
	cargo clean

setup-demo:
	@sh $(setup)/toolchain.sh
	@sh $(setup)/wasm-target.sh

setup-test:
	@sh $(setup)/toolchain.sh --with-lints
	@sh $(setup)/wasm-target.sh
	@sh $(setup)/nats-server.sh
	@sh $(setup)/promtool.sh
	@sh $(setup)/schemathesis.sh
	@sh $(setup)/guest-python.sh
	@sh $(setup)/guest-typescript.sh
	@sh $(setup)/guest-go.sh
	@sh $(setup)/guest-c.sh
