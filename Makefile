# Each target is the only command a newcomer needs: it does the set-up itself. Run as root on Debian 12 or 13.
.PHONY: help setup build demo check test bench fuzz install image-refresh image-back lint schema docs book

# Cargo may just have been installed by the set-up, for this very shell.
export PATH := $(PATH):$(HOME)/.cargo/bin

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## Install what is missing, make the images (idempotent; asks for nothing)
	@scripts/setup.sh

build: ## Build everything
	@scripts/setup.sh build
	cargo build --workspace --locked

demo: ## Show the main job: build remotely, push, build again warm, idle end, wake
	@scripts/setup.sh demo
	cargo build --locked -p slipway -p slipwayd -p slipway-guest
	scripts/demo.sh

# Two suites share one dockerd among their tests, so each runs in one process; nextest, which runs every test in a process of
# its own, runs all the others and prints the summary.
ONE_DOCKERD = (package(slipway-buildkit) & binary(dockerd)) | (package(slipway-registry-push) & binary(push))

test: setup lint build ## Prove everything
	SLIPWAY_TEST_ROOTFS=$$(scripts/test-rootfs.sh) cargo test --locked --workspace --test dockerd
	SLIPWAY_TEST_ROOTFS=$$(scripts/test-rootfs.sh) cargo test --locked --workspace --test push
	@status=0; cargo nextest run --workspace --locked -E 'not ($(ONE_DOCKERD))' || status=$$?; \
	[ -n "$$CI" ] || scripts/slowest.sh target/nextest/default/junit.xml; exit $$status

# What needs no root: for the minutes between two saves.
check: ## Formatting, clippy, and the tests that need neither root nor Docker
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo nextest run --profile check --workspace --locked

bench: setup ## Print the figures, each against the real alternative
	cargo build --release --workspace --locked
	target/release/slipway-loadtest compare

# Of each target; and which ones, if not all.
SECONDS = 60
TARGETS =
fuzz: ## Try the parsers of foreign bytes under libFuzzer (SECONDS=60 for each, TARGETS="a b")
	@scripts/setup.sh fuzz
	scripts/fuzz.sh $(SECONDS) $(TARGETS)

install: ## Install this computer as a farm: programs, settings, systemd units (DESTDIR is honoured)
	@scripts/setup.sh host
	cargo build --release --locked -p slipway -p slipwayd -p slipway-guest -p slipway-registry-push
	scripts/install.sh

IMAGES = $${SLIPWAY_CACHE:-/var/cache/slipway}/image
image-refresh: ## Make builder image and kernel of virtual machines anew, from today's packages
	@scripts/setup.sh host
	builder/image/build.sh --refresh "$(IMAGES)"
	builder/image/kernel.sh --refresh "$(IMAGES)"

image-back: ## Take the previous builder image again (KERNEL=1: the previous kernel too)
	builder/image/build.sh --back "$(IMAGES)"
	@if [ -n "$(KERNEL)" ]; then builder/image/kernel.sh --back "$(IMAGES)"; fi

lint: ## Formatting and clippy, warnings are errors; licenses and sources of what is depended on
	@scripts/setup.sh lint
	cargo fmt --all --check
	cargo deny --locked check bans licenses sources
	cargo clippy --workspace --all-targets --locked -- -D warnings
	scripts/client-elsewhere.sh

schema: ## Write docs/schema.graphql anew
	SLIPWAY_UPDATE=1 cargo test -p slipway-scheduler --test schema

docs: ## Write docs/cli.md and docs/slipwayd.md anew
	cargo build -q -p slipway -p slipwayd
	target/debug/slipway docs > docs/cli.md
	target/debug/slipwayd docs > docs/slipwayd.md

book: ## Make the pages of docs/ a book with search: target/book/index.html
	@scripts/setup.sh book
	mdbook build docs
