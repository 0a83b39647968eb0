#!/bin/bash
# Makes a Debian 12 or 13 machine ready to build, run and test Slipway: packages, the Rust toolchain, cargo-nextest, and the
# builder's root image, and the tests' virtual machine. Idempotent; asks for nothing; says nothing where nothing is to do.
#
# Needs root (or sudo without a password) and a package mirror. Nothing it installs is left running.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
began=$SECONDS did=0
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

root=()
if [[ $(id -u) != 0 ]]; then
	sudo -n true 2>/dev/null || die "must be run as root (hint: sudo make setup)"
	root=(sudo -n "--preserve-env=DEBIAN_FRONTEND,SLIPWAY_MIRROR")
fi
[[ -e /etc/debian_version && -n $(type -P apt-get) ]] ||
	die "this is not Debian; Slipway's setup knows Debian 12 and 13"

# --- packages
packages=(
	# to build
	gcc libc6-dev pkg-config make git curl ca-certificates
	# to build ISA-L, which compresses layers
	nasm autoconf automake libtool
	# the builder's image, and base images for the demo and the tests
	mmdebstrap squashfs-tools xz-utils skopeo busybox-static
	# what the host daemon calls
	runc nftables iproute2 e2fsprogs util-linux lvm2 thin-provisioning-tools cryptsetup-bin
	# the demo and the tests
	docker-registry jq python3 python3-venv
	# file systems that share blocks, for the tests of volumes
	xfsprogs btrfs-progs
	# what a push is compared with, beside docker and skopeo
	buildah
)
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
if [[ $(dpkg --print-architecture) == amd64 ]]; then
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
	# The registry's service would also start at the next boot; one that was there before is not ours to touch.
	if [[ " ${missing[*]} " == *" docker-registry "* ]]; then
		# Knows both systemd and the older way.
		"${root[@]}" update-rc.d docker-registry disable >/dev/null 2>&1 || true
	fi
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

if ! cargo nextest --version >/dev/null 2>&1; then
	if has_package cargo-nextest; then
		run "cargo-nextest (Debian's package)" install_packages cargo-nextest
	else
		run "cargo-nextest (compiled, some minutes)" cargo install --locked --quiet cargo-nextest
	fi
fi

# --- the builder's root image
cache=${SLIPWAY_CACHE:-/var/cache/slipway}
link=$(readlink "$cache/image/base.squashfs" 2>/dev/null || true)
at=$SECONDS
"${root[@]}" builder/image/build.sh "$cache/image" >/dev/null
if [[ $(readlink "$cache/image/base.squashfs") != "$link" ]]; then
	say "builder image: $cache/image/base.squashfs ($((SECONDS - at)) s)"
	did=1
fi

# --- what builders boot with when they are virtual machines
link=$(readlink "$cache/image/kernel" 2>/dev/null || true)
at=$SECONDS
"${root[@]}" builder/image/kernel.sh "$cache/image" >/dev/null
if [[ $(readlink "$cache/image/kernel") != "$link" ]]; then
	say "kernel of virtual machines: $cache/image/kernel ($((SECONDS - at)) s)"
	did=1
fi

# --- the tests' virtual machine
if [[ $(dpkg --print-architecture) == amd64 ]]; then
	link=$(readlink "$cache/vm/current" 2>/dev/null || true)
	at=$SECONDS
	"${root[@]}" loadtests/vm/image.sh "$cache/vm" >/dev/null
	if [[ $(readlink "$cache/vm/current") != "$link" ]]; then
		say "test machine: $cache/vm/current ($((SECONDS - at)) s)"
		did=1
	fi
fi

((!did)) || say "ready after $((SECONDS - began)) s"
