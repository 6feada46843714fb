# Perigee. `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo
CONF ?= conf/local.yaml

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: tools
tools:
	@scripts/tools.sh build

.PHONY: build
build: tools ## Build the release binary (target/release/perigee)
	$(CARGO) build --release --locked

.PHONY: check
check: tools ## Formatting and lints, warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

.PHONY: run
run: build ## Build and start the edge on examples/hello (CONF=FILE for another configuration)
	target/release/perigee serve -c $(CONF)

.PHONY: test
test: tools ## All fast tests; installs what they need
	@scripts/tools.sh test
	RUST_TEST_THREADS=8 $(CARGO) test --locked
	node --test tests/launcher/launcher.test.mjs

.PHONY: slow
slow: tools ## Tests that take minutes: real processes with a real Redis, kills, stops, floods (SLOW_SECONDS=20 per fault)
	@scripts/tools.sh slow
	$(CARGO) test --profile slow --locked --test slow --test regional -- --ignored --test-threads=1 --nocapture
	cd tests/model && $(CARGO) test --release --locked

.PHONY: scale
scale: ## A model of 20 regions with 50 nodes each: origin calls with two levels of collapsing, with one, with none
	cd tests/model && $(CARGO) run --release --locked --bin scale

.PHONY: bench
bench: build ## Beside nginx and Varnish, in one run: CPU per cached hit (ROUNDS=7, SECONDS_EACH=3), then crowds (bench-collapse)
	@scripts/tools.sh bench
	scripts/bench.sh
	ROUNDS=$(or $(COLLAPSE_ROUNDS),1) scripts/collapse.sh

.PHONY: bench-collapse
bench-collapse: build ## Origin calls and waits of crowds, beside nginx (proxy_cache_lock) and Varnish (ROUNDS=1)
	@scripts/tools.sh bench
	scripts/collapse.sh

.PHONY: load
load: build ## Load examples/hello with oha and show rate, latency and cache states (SECONDS_EACH=5)
	@scripts/tools.sh load
	scripts/load.sh

.PHONY: deny
deny: ## Licences and known vulnerabilities of all dependencies (cargo-deny)
	@scripts/tools.sh deny
	cargo deny --locked check bans licenses sources

.PHONY: clean
clean: ## Remove what was built and what `make run` stored
	$(CARGO) clean
	rm -rf data
