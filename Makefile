# The README's commands. Everything here runs as root; anybody else goes through sudo.
SHELL := /bin/bash
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=PATH,HOME,CARGO_HOME,RUSTUP_HOME,AMPHI_ONCE,AMPHI_ROUNDS,AMPHI_HUNDRED,AMPHI_EXCHANGES,AMPHI_COLLECTION,AMPHI_FAILOVER,AMPHI_LAB_DIR,AMPHI_RECYCLE_HOURS,CI)
LAB := $(SUDO) target/debug/amphi-lab

.PHONY: run up down test test-images tempest bench chaos fuzz lint install build images clients

# Two hosts, the story with visible progress, then the lab stays up until Ctrl-C. AMPHI_ONCE=1 ends after the story.
run: install build images
	$(LAB) run

# The same lab, detached; `. target/lab/env` gives clients its address and token.
up: install build images
	$(LAB) up --hosts 2

down:
	$(LAB) down

# The tests' own build makes the programs too, and the lane runs one of the tests' programs: nothing is built twice.
test: install images
	$(SUDO) cargo nextest run --workspace
	$(SUDO) scripts/uml-lane.sh

# What is about images alone.
test-images: install images
	$(SUDO) cargo nextest run --workspace -E 'test(/image|registry|mirror|repositor|blob|flatten|pulls|oci/) | test(sets::a_set_runs) | binary(registry) | binary(sharing) | binary(set_as_vm) | binary(import) | binary(convert) | binary(catalogue) | binary(s3) | binary(disk_formats) | test(/conver/)'

# Tempest's own tests against the lab that `AMPHI_RECYCLE_HOURS=0 make up` has started (hundreds of volumes would fill the
# bin); TEMPEST is the runner, beside its list and pins.
tempest: install
	scripts/tempest.sh

# Of programs built as they are for those who run them.
bench: install images
	cargo build --workspace --release
	target/release/amphi-lab bench-services
	$(SUDO) target/release/amphi-lab bench
	AMPHI_HUNDRED=100 $(SUDO) cargo nextest run --workspace --release --no-capture --test hundred
	AMPHI_EXCHANGES=10 $(SUDO) cargo nextest run --workspace --release --no-capture --test set_as_vm -E 'test(one_artifact_has_both_bodies)'

# Hosts that fail in every way that docs/failover.md names. The long form:
# make chaos CHAOS="--rounds 100 --instances 50 --outage 600 --minutes 120"
chaos: install build images
	$(LAB) chaos $(CHAOS)
	target/debug/amphi-lab storm --seconds 300
	target/debug/amphi-lab deaths --replays 2
	target/debug/amphi-lab races --rounds 100
	AMPHI_COLLECTION=60 $(SUDO) cargo nextest run --workspace --no-capture -E 'test(garbage_collection_takes_nothing)'

# The native face under schemathesis, ten minutes with a new seed; `make test` has a short run with a fixed one.
fuzz: install build
	target/debug/amphi-lab fuzz

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

install:
	scripts/install.sh

build:
	cargo build --workspace

images:
	$(SUDO) scripts/make-images.sh
	$(SUDO) scripts/make-guest-kit.sh

# The openstack program and openstacksdk, as PyPI has them, in target/clients.
clients: install
	scripts/clients.sh target/clients integration/clients/requirements.txt
