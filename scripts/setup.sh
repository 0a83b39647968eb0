#!/bin/bash
# Makes a Debian 12 or 13 machine ready for Slipway. Idempotent; asks for nothing; says nothing where nothing is to do.
#
#   setup.sh build    what compiles it: a C compiler, the Rust toolchain
#   setup.sh demo     and what runs it: packages, the builder's root image
#   setup.sh host     and all that a host for keeps can use: LVM, encryption, virtual machines
#   setup.sh [test]   and what proves it: cargo-nextest, the tests' virtual machine
#   setup.sh lint     what compiles it, and cargo-deny
#   setup.sh fuzz     what compiles it, and libFuzzer
#   setup.sh book     what compiles it, and mdBook
#
# Needs root (or sudo without a password) and a package mirror. Nothing it installs is left running.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
began=$SECONDS did=0
stages=(build demo host test)
# Whether what $1 needs is asked for: each stage has all before it.
wants() { [[ " ${stages[*]} " == *" $1 "*"${last} "* || $1 == "$last" ]]; }
last=${1:-test} extra=
if [[ $last == lint || $last == fuzz || $last == book ]]; then
	extra=$last last=build
fi
say() { printf 'setup: %s\n' "$*"; }
die() {
	printf 'setup: %s\n' "$*" >&2
	exit 1
}
# Says $1, runs the rest, and shows its output only if it fails. The shell does not end at a failed command inside
# a function that is run so: those chain their commands.
run() {
	local what=$1 log at=$SECONDS
	shift
	say "$what"
	did=1
	log=$(mktemp)
	if ! "$@" >"$log" 2>&1; then
		tail -n 40 -- "$log" >&2
		rm -f -- "$log"
		die "failed: $* (its last lines are above)"
	fi
	rm -f -- "$log"
	((SECONDS - at < 2)) || say "  done in $((SECONDS - at)) s"
}

[[ " ${stages[*]} " == *" $last "* ]] || die "usage: setup.sh [build|demo|host|test|lint|fuzz|book]"
root=()
if [[ $(id -u) != 0 ]]; then
	sudo -n true 2>/dev/null || die "must be run as root (hint: sudo make setup)"
	root=(sudo -n "--preserve-env=DEBIAN_FRONTEND,SLIPWAY_MIRROR")
fi
[[ -e /etc/debian_version && -n $(type -P apt-get) ]] ||
	die "this is not Debian; Slipway's setup knows Debian 12 and 13"

# --- packages
packages=(
	gcc libc6-dev pkg-config make git curl ca-certificates
	# to build ISA-L, which compresses layers
	nasm autoconf automake libtool
)
[[ $extra != fuzz ]] || packages+=(g++)
if wants demo; then
	packages+=(
		# the builder's image, and base images for the demo and the tests
		mmdebstrap squashfs-tools xz-utils skopeo busybox-static openssh-client
		# what the host daemon calls
		runc nftables iproute2 e2fsprogs util-linux
		# the demo
		docker-registry jq
	)
fi
if wants host; then
	# volumes in a thin pool of LVM, and encrypted ones
	packages+=(lvm2 thin-provisioning-tools cryptsetup-bin)
fi
if wants test; then
	packages+=(
		python3 python3-venv
		# an apt source of the tests' own, with its signature
		dpkg-dev gnupg
		# shells that completions are tried in, besides bash
		zsh fish
		# file systems that share blocks, for the tests of volumes
		xfsprogs btrfs-progs
		# what a push is compared with, beside docker and skopeo; what the gateway is compared with
		buildah haproxy nginx
	)
fi
is_installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }
missing=()
for package in "${packages[@]}"; do
	is_installed "$package" || missing+=("$package")
done

# Installs packages without starting the services that come with them.
install_packages() {
	local policy=/usr/sbin/policy-rc.d made=0 status=0
	if [[ ! -e $policy ]]; then
		printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
		"${root[@]}" chmod 0755 "$policy"
		made=1
	fi
	"${root[@]}" apt-get install -y -q --no-install-recommends "$@" || status=$?
	((!made)) || "${root[@]}" rm -f "$policy"
	return "$status"
}

# For builders that are virtual machines, and the tests' own: x86-64 so far.
emulator=()
if wants host && [[ $(dpkg --print-architecture) == amd64 ]]; then
	is_installed qemu-system-x86 || emulator=(qemu-system-x86)
fi

# Where other programs of QEMU were taken from the suite's backports, the emulator must be too, or they would be removed.
# A mirror that is known to serve the suite serves its backports.
install_emulator() {
	local list=/etc/apt/sources.list.d/slipway-backports.list codename site status=0
	if ! apt-get install -s --no-install-recommends "$@" | grep -q '^Remv '; then
		install_packages "$@"
		return
	fi
	codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	site=$(apt-get indextargets --format '$(REPO_URI)' "Origin: Debian" "Codename: $codename" "Created-By: Packages" | head -n 1)
	echo "deb $site $codename-backports main" | "${root[@]}" tee "$list" >/dev/null
	{ "${root[@]}" apt-get update -q && install_packages -t "$codename-backports" "$@"; } || status=$?
	"${root[@]}" rm -f "$list"
	return "$status"
}

if ((${#missing[@]} + ${#emulator[@]})); then
	run "package lists" "${root[@]}" apt-get update -q
	((!${#missing[@]})) || run "packages: ${missing[*]}" install_packages "${missing[@]}"
	((!${#emulator[@]})) || run "packages: ${emulator[*]}" install_emulator "${emulator[@]}"
	# Their services would also start at the next boot; one that was there before is not ours to touch.
	for service in docker-registry haproxy nginx; do
		if [[ " ${missing[*]} " == *" $service "* ]]; then
			# Knows both systemd and the older way.
			"${root[@]}" update-rc.d "$service" disable >/dev/null 2>&1 || true
		fi
	done
fi

# --- Rust
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export PATH=$cargo_home/bin:$PATH
has_package() { apt-cache policy "$1" 2>/dev/null | grep -q '^ *Candidate: [^(]'; }

install_rustup() {
	local script status=0
	script=$(mktemp)
	{ curl --proto '=https' --tlsv1.2 -fsSL https://static.rust-lang.org/rustup/rustup-init.sh -o "$script" &&
		sh "$script" -y --no-modify-path --profile minimal --default-toolchain none; } || status=$?
	rm -f -- "$script"
	return "$status"
}

if [[ -z $(type -P cargo) && -z $(type -P rustup) ]]; then
	if has_package rustup; then
		run "rustup (Debian's package)" install_packages rustup
	else
		run "rustup (the official installer)" install_rustup
	fi
fi
if [[ -n $(type -P rustup) ]]; then
	channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
	if ! rustup run "$channel" cargo clippy --version >/dev/null 2>&1 ||
		! rustup run "$channel" rustfmt --version >/dev/null 2>&1; then
		run "Rust $channel, as rust-toolchain.toml has it" \
			rustup toolchain install "$channel" --profile minimal --component rustfmt,clippy
	fi
fi
cargo --version >/dev/null 2>&1 || die "cargo does not work (hint: run 'cargo --version' here and see)"

if wants test && ! cargo nextest --version >/dev/null 2>&1; then
	if has_package cargo-nextest; then
		run "cargo-nextest (Debian's package)" install_packages cargo-nextest
	else
		run "cargo-nextest (compiled, some minutes)" cargo install --locked --quiet cargo-nextest
	fi
fi

# Looks at what is depended on. Without what it fetches databases with, and hardly optimized: it runs for a second.
install_deny() {
	CARGO_PROFILE_DEV_DEBUG=false cargo install --locked --quiet --debug --no-default-features --version '^0.20' cargo-deny
}
if { wants test || [[ $extra == lint ]]; } && ! cargo deny --version >/dev/null 2>&1; then
	if has_package cargo-deny; then
		run "cargo-deny (Debian's package)" install_packages cargo-deny
	else
		run "cargo-deny (compiled, a minute or two)" install_deny
	fi
fi

# Makes docs/ a book. Without its server and its watching of files.
install_mdbook() {
	CARGO_PROFILE_RELEASE_LTO=false cargo install --locked --quiet --no-default-features --features search --version '=0.5.4' mdbook
}
if [[ $extra == book ]] && ! mdbook --version >/dev/null 2>&1; then
	run "mdBook (compiled, some minutes)" install_mdbook
fi

# --- the images
cache=${SLIPWAY_CACHE:-/var/cache/slipway}
# Runs $3... to make what the link $cache/$2 points to, and says so if it was not there: $1.
image() {
	local what=$1 link=$cache/$2 before at=$SECONDS
	shift 2
	before=$(readlink "$link" 2>/dev/null || true)
	"${root[@]}" "$@" >/dev/null
	[[ $(readlink "$link") != "$before" ]] || return 0
	say "$what: $link ($((SECONDS - at)) s)"
	did=1
}
! wants demo || image "builder image" image/base.squashfs builder/image/build.sh "$cache/image"
! wants host || image "kernel of virtual machines" image/kernel builder/image/kernel.sh "$cache/image"
if wants test && [[ $(dpkg --print-architecture) == amd64 ]]; then
	image "test machine" vm/current loadtests/vm/image.sh "$cache/vm"
fi

((!did)) || say "ready after $((SECONDS - began)) s"
