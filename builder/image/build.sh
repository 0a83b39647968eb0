#!/bin/bash
# Makes the root image that every builder machine boots: a read-only squashfs of Debian with Docker's engine, or of a root file
# system of the operator's (settings.sh).
#
#   build.sh [OUT]            makes an image if there is none of this recipe
#   build.sh --refresh [OUT]  makes one from today's packages, and removes those that are neither the current nor the previous one
#   build.sh --back [OUT]     makes the previous one current again, until the recipe changes or the next --refresh
#
#   OUT defaults to $OUT, then to /var/cache/slipway/image
#
# Gives OUT/base-RECIPE-CONTENT.squashfs (RECIPE: hash of the files beside this one, the operator's choices and the architecture;
# CONTENT: hash of the names and versions of the packages, or of the operator's files), the same name with `.packages` (names and
# versions of what is in it), the links OUT/base.squashfs and OUT/base.packages to them, and the same links with `previous` to
# what was current before. Prints the image's path. The time stamp of the image is when its packages were last looked up.
#
# The same recipe, package versions and squashfs-tools give the same bytes. Any number may run at a time: one builds.
# Needs root, mmdebstrap and squashfs-tools (scripts/setup.sh installs them). SLIPWAY_MIRROR names another Debian mirror
# than mmdebstrap's own choice, SLIPWAY_IMAGE_LEVEL another level of compression than 12 (1 to 22).
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC

say() { printf 'image: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}

verb=make
case ${1:-} in
--refresh | --back)
	verb=${1#--}
	shift
	;;
--*) die "usage: build.sh [--refresh | --back] [OUT]" ;;
esac
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
out=${1:-${OUT:-/var/cache/slipway/image}}
level=${SLIPWAY_IMAGE_LEVEL:-12}
recipe=(build.sh settings.sh customize.sh packages engine-packages)
# The time stamp of everything in the image: when Debian 13 was released.
export SOURCE_DATE_EPOCH=1754697600
arch=$(dpkg --print-architecture)
# shellcheck source=builder/image/settings.sh
. "$here/settings.sh"
read_choices

hash=$(cd "$here" && { sha256sum -- "${recipe[@]}" && echo "$arch $level" && choices_text "${choices[@]}"; } | sha256sum | cut -c1-16)

finish() {
	local name=$1
	switch "$name.squashfs" "$out/base.squashfs" "$out/base.previous.squashfs"
	switch "$name.packages" "$out/base.packages" "$out/base.previous.packages"
	printf '%s\n' "$out/$name.squashfs"
	exit 0
}
# What is there of this recipe, if that is enough.
use_made() {
	local made
	[[ $verb == make ]] || return 0
	made=$(choose "$out/base.squashfs" "base-$hash-*.squashfs")
	[[ -z $made ]] || finish "${made%.squashfs}"
}

use_made
[[ $(id -u) == 0 ]] || die "must be run as root"
mkdir -p -- "$out"
exec {lock}>"$out/.lock"
flock "$lock"
if [[ $verb == back ]]; then
	previous=$(readlink -- "$out/base.previous.squashfs" || true)
	[[ -n $previous && -s $out/$previous ]] || die "there is no previous image in $out"
	swap "$out/base.squashfs" "$out/base.previous.squashfs"
	swap "$out/base.packages" "$out/base.previous.packages"
	remember_back "$out/base.squashfs" "base-$hash-*.squashfs"
	say "$previous is the current image again; the next start of a machine takes it"
	finish "${previous%.squashfs}"
fi
for tool in mmdebstrap mksquashfs; do
	[[ -n $(type -P "$tool") ]] || die "$tool is not installed (hint: make setup)"
done
# Another run may have made it while this one waited.
use_made

# Whatever is here was left by a run that was killed: we have the lock.
rm -rf --one-file-system -- "$out"/.building.*
tmp=$out/.building.$$
mkdir -- "$tmp"
trap 'rm -rf --one-file-system -- "$tmp"' EXIT

names() { sed 's/#.*//' "$@" | xargs | tr ' ' ,; }
# What PID 1 of a machine looks for (builder/guest/src/inventory.rs), in the root directory $1.
check_hook() {
	# shellcheck disable=SC2016 # mmdebstrap's shell expands it
	printf '%s' 'missing=$(chroot "$1" /bin/sh -c "for p in dockerd containerd containerd-shim-runc-v2 runc iptables; do
			command -v \$p >/dev/null || printf \" %s\" \$p; done") || { echo "no program of it runs here" >&2; exit 1; }
		[ -z "$missing" ] || { echo "there is no$missing in it" >&2; exit 1; }
		trusted=
		for f in ssl/certs/ca-certificates.crt pki/tls/certs/ca-bundle.crt ssl/cert.pem; do
			[ ! -e "$1/etc/$f" ] && [ ! -L "$1/etc/$f" ] || trusted=1; done
		[ -n "$trusted" ] || { echo "there are no certificates of authorities (ca-certificates) in it" >&2; exit 1; }
		version=$(chroot "$1" dockerd --version 2>/dev/null | sed -n "s/.*version \([0-9][0-9]*\)\..*/\1/p")
		[ "${version:-24}" -ge 24 ] || { echo "its Docker $version is too old, 24 or later is needed" >&2; exit 1; }'
}

# Debian with an engine, as the tar $tmp/root.tar; names and versions of its packages as $tmp/packages.
make_debian() {
	local options=() path
	for path in doc man info locale lintian bash-completion zsh; do
		options+=("--dpkgopt=path-exclude=/usr/share/$path/*")
	done
	mapfile -t -O "${#options[@]}" options < <(suite_options)
	case $ENGINE in
	debian) options+=("--include=$(names "$here/packages" "$here/engine-packages")") ;;
	apt)
		options+=("--include=$(names "$here/packages"),$(xargs <<<"$APT_PACKAGES" | tr ' ' ,)")
		printf 'deb [signed-by=%s] %s %s %s\n' "$APT_KEY" "$APT_URI" "$APT_SUITE" "$APT_COMPONENTS" >"$tmp/engine.list"
		# Taken from there also where Debian has packages of these names.
		printf 'Package: %s\nPin: origin "%s"\nPin-Priority: 990\n' "$(xargs <<<"$APT_PACKAGES")" "$(apt_site)" >"$tmp/engine.pref"
		options+=("--setup-hook=cp '$tmp/engine.list' \"\$1/etc/apt/sources.list.d/\" && cp '$tmp/engine.pref' \"\$1/etc/apt/preferences.d/\"")
		;;
	esac
	# The tar is sorted and its times are those of the epoch above; so are the file system's own.
	if ! TMPDIR=$tmp mmdebstrap --variant=minbase --format=tar "${options[@]}" \
		--customize-hook="$here/customize.sh \"\$1\"" --customize-hook="$(check_hook)" \
		--customize-hook="dpkg-query --admindir=\"\$1/var/lib/dpkg\" -W -f '\${Package} \${Version} \${Architecture}\n' >'$tmp/packages'" \
		"$SUITE" "$tmp/root.tar" ${SLIPWAY_MIRROR:+"$SLIPWAY_MIRROR"} 2>"$tmp/log"; then
		tail -n 40 -- "$tmp/log" >&2
		die "mmdebstrap failed (its last lines are above)"
	fi
	content=$(sha256sum <"$tmp/packages" | cut -c1-16)
}

# The host of APT_URI, as apt's preferences name an origin; nothing where it is a directory.
apt_site() {
	[[ ! $APT_URI =~ ^https?://([^/@]*@)?([^/:]+) ]] || printf '%s' "${BASH_REMATCH[2]}"
}

# The operator's files, as the same two files.
make_from_rootfs() {
	local root=$tmp/root
	mkdir -- "$root"
	if [[ -d $ROOTFS ]]; then
		tar --create --one-file-system --xattrs --xattrs-include='security.capability' --numeric-owner -C "$ROOTFS" . |
			tar --extract --xattrs --xattrs-include='security.capability' --numeric-owner --preserve-permissions -C "$root"
	else
		tar --extract --file "$ROOTFS" --xattrs --xattrs-include='security.capability' --numeric-owner --preserve-permissions \
			--exclude='./dev/*' --exclude='dev/*' -C "$root" || die "$ROOTFS is no tar that can be unpacked"
	fi
	"$here/customize.sh" "$root" as-it-is
	sh -euc "$(check_hook)" sh "$root" 2>"$tmp/log" || die "$ROOTFS cannot be a builder: $(tail -n 1 -- "$tmp/log")"
	if [[ -d $root/var/lib/dpkg ]]; then
		dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${Package} ${Version} ${Architecture}\n' >"$tmp/packages"
	else
		: >"$tmp/packages"
	fi
	tar --create --sort=name --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --xattrs --xattrs-include='security.capability' \
		--file "$tmp/root.tar" -C "$root" .
	rm -rf --one-file-system -- "$root"
	content=$(sha256sum <"$tmp/root.tar" | cut -c1-16)
}

began=$SECONDS
say "building an image in $out (about a minute)"
if [[ $ENGINE == rootfs ]]; then make_from_rootfs; else make_debian; fi
name=base-$hash-$content
if [[ -s $out/$name.squashfs && -e $out/$name.packages ]]; then
	say "$name.squashfs is what today's packages give"
	touch -- "$out/$name.squashfs"
else
	# zstd in large blocks costs 0.1 s more than lz4 when dockerd is first read, and takes a quarter less room.
	mksquashfs - "$tmp/squashfs" -tar -comp zstd -Xcompression-level "$level" -b 256K -root-mode 0755 -root-uid 0 -root-gid 0 \
		-noappend -no-progress -quiet <"$tmp/root.tar" >"$tmp/log" 2>&1 || {
		cat -- "$tmp/log" >&2
		die "mksquashfs failed"
	}
	touch -- "$tmp/squashfs"
	sync -- "$tmp/squashfs" "$tmp/packages"
	# The image last: it is what says that all is there.
	mv -f -- "$tmp/packages" "$out/$name.packages"
	mv -f -- "$tmp/squashfs" "$out/$name.squashfs"
	say "built $name in $((SECONDS - began)) s: $(stat -c %s -- "$out/$name.squashfs" | numfmt --to=iec-i)B, $(wc -l <"$out/$name.packages") packages"
fi
if [[ $verb == refresh ]]; then
	forget_back "$out/base.squashfs"
	switch "$name.squashfs" "$out/base.squashfs" "$out/base.previous.squashfs"
	remove_unused "$out" 'base-*' "$out/base.squashfs" "$out/base.previous.squashfs"
fi
finish "$name"
