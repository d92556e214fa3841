# What CI runs is `make lint` and `make test`; .ci/run does just that.
# The packages of the system that each target needs stand in scripts/deps.sh.

CARGO ?= cargo

.PHONY: help deps test-deps build demo test scenarios soak bench lint fmt doc clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

deps: ## install what the build and the demo need
	@scripts/deps.sh build

test-deps: deps ## install what the tests with real components need (etcd, FRR)
	@scripts/deps.sh test

build: deps ## build the release binary, target/release/selvedge
	$(CARGO) build --release

demo: deps ## a whole fabric on this machine, in network namespaces; as root
	$(CARGO) run --release -- demo

test: deps test-deps ## run everything, real etcd and FRR included, and say what ran
	@scripts/test.sh

scenarios: deps test-deps ## run the scenarios of the demo, the lab and the simulator only
	@scripts/test.sh scenarios

soak: deps test-deps ## run the long scenarios with their bounds, for hours; ONLY="name ..." runs those
	@scripts/soak.sh $(ONLY)

bench: deps ## measure what the cores cost, in a minute or two
	$(CARGO) bench -p selvedge-gateway --bench core
	$(CARGO) bench -p selvedge-mesh --bench core
	$(CARGO) bench -p selvedge-topology --bench plan

lint: deps ## formatting, clippy, documentation, dependencies, rules of the house
	@scripts/deps.sh lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet
	$(CARGO) deny --log-level error check --hide-inclusion-graph bans licenses sources
	@scripts/house.sh
	@echo "lint: all clean"

fmt: ## format the code
	$(CARGO) fmt --all

doc: deps ## build the API documentation
	$(CARGO) doc --workspace --no-deps

clean: ## remove what was built
	$(CARGO) clean
