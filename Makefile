# `make` lists the everyday commands; scripts/ does the work.
SHELL := /bin/bash
.DEFAULT_GOAL := help
IN := source scripts/env.sh &&
PYTHON := .venv/bin/python

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: ## store a real KV cache, kill the server, read it back (the first time about 30 minutes on 2 cores)
	@echo "The first time takes about 30 minutes on 2 cores, most of it to compile, once for the machine; after that, about 10 seconds."
	@scripts/setup.sh
	@$(MAKE) --no-print-directory build
	@$(PYTHON) scripts/demo.py

test: ## everything CI runs: format, lints, Rust tests, Python tests against a real server
	@scripts/setup.sh
	@scripts/servers.sh install
	@scripts/test.sh

test-servers: ## beside `make test`: a Redis Cluster that loses a node, and Ceph's S3 gateway (installed where they are missing)
	@scripts/setup.sh
	@scripts/servers.sh install cluster ceph
	@$(IN) cargo test --locked --workspace --test remote -- --ignored

build: ## the program, in release, at bin/sira
	@scripts/setup.sh packages
	@$(IN) cargo build --release --locked --package sira
	@mkdir -p bin && source scripts/env.sh && install "$$CARGO_TARGET_DIR/release/sira" bin/sira

wheel: ## the server and the Python client as one wheel, in python-client/dist
	@scripts/setup.sh
	@$(MAKE) --no-print-directory build
	@scripts/wheel.sh

native: ## the extension of the Python client as a wheel, in python-client/dist
	@scripts/setup.sh
	@$(IN) cargo build --release --locked --package sira-native && scripts/native.sh "$$CARGO_TARGET_DIR/release/libsira_native.so"

check: ## format, lints and schemas, without tests
	@scripts/setup.sh
	@scripts/test.sh check

bench: ## speed, as ratios within one run
	@scripts/setup.sh
	@$(MAKE) --no-print-directory build
	@$(IN) cargo bench --locked --package sira-benches

compare: ## Sira beside Arrow's C++ Flight, Redis, Mooncake and a raw socket (about 45 minutes; QUICK=1: about 4)
	@scripts/setup.sh
	@scripts/compare.sh $(if $(QUICK),--quick --plot compare.svg,--plot docs/img/compare.svg) --json compare.json

codecs: ## codecs for KV caches beside zstd, ZipNN, KIVI, KVTC and others: size, speed, what they do to a model (QUICK=1: less)
	@scripts/setup.sh
	@scripts/codecs.sh run $(if $(QUICK),--quick --plots codecs-plots,--plots docs/img) --json codecs.json

fuzz: ## every parser of outside bytes against hostile ones, SIRA_FUZZ_SECONDS (20) each
	@scripts/setup.sh packages
	@scripts/fuzz.sh

soak: ## the long runs of the tests, SIRA_SOAK_SECONDS (600) of them; the next call goes on from there
	@scripts/setup.sh packages
	@scripts/soak.sh

docs: ## the crates' documentation, in the target folder
	@scripts/setup.sh packages
	@$(IN) cargo doc --locked --workspace --no-deps && echo "$$CARGO_TARGET_DIR/doc/sira_store/index.html"

schemas: ## the code of schemas/*.fbs, after a change there
	@scripts/schemas.sh

.PHONY: help demo test test-servers build wheel native check bench compare codecs fuzz soak docs schemas
