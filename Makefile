# Each target works from a clean checkout with no other step before it: what a machine lacks is installed or named.

.DEFAULT_GOAL := help
.PHONY: help demo run test test-page build pgo lint fuzz instructions bench bench-parts bench-fleet test-docker clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## start llama-server and the gateway, show what the gateway does, stop both
	@scripts/start demo

run: ## start llama-server and the gateway and leave them running until Ctrl-C
	@scripts/start run

test: ## everything that must hold: lint, unit tests, integration tests, tests against a real llama-server
	@scripts/test

test-page: ## the operator's page in headless Chromium; screenshots in target/page (part of make test)
	@scripts/test-page

build: ## build the release binary, target/release/ai-gateway
	@scripts/build --release

pgo: ## the same built for what it does, target/pgo/ai-gateway: an eighth faster (15 minutes)
	@scripts/pgo

lint: ## formatting, clippy, documentation, shell scripts, Dockerfile, compose file, alerts, dashboard, Kubernetes manifests
	@scripts/lint

fuzz: ## made-up streams, bodies and answers against what must hold for any (always the same; new ones: scripts/fuzz SECONDS)
	@scripts/fuzz same

instructions: ## how many instructions the parts, a request and a hit take, held to bench/instructions.json (UPDATE=1 writes it)
	@scripts/instructions

bench: ## what a request, a hit, an event and a stream cost beside nginx, haproxy, Envoy and bare Pingora (30 minutes)
	@scripts/bench

bench-parts: ## what the parts take by themselves: limits, key, prefixes, cache, streams (10 minutes, most of it building)
	@scripts/bench-parts

bench-fleet: ## one trace on several llama-servers, by each way to choose one: docs/FLEET.md (6 minutes)
	@scripts/start bench-fleet

test-docker: ## build the image and run the compose file for real, in a Docker engine of its own (root, Debian)
	@scripts/test-docker

clean: ## remove everything that these targets made inside this folder
	rm -rf target .llama .tools .demo
