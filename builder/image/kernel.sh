#!/bin/bash
# Makes what a builder boots with when it is a virtual machine: Debian trixie's cloud kernel, a small initrd that puts the
# root file system together, and the kernel's modules as a squashfs.
#
#   kernel.sh [OUT]             makes one if there is none of this recipe
#   kernel.sh --refresh [OUT]   makes one from today's packages, and removes those that are neither the current nor the previous one
#   kernel.sh --back [OUT]      makes the previous one current again, until the recipe changes or the next --refresh
#
#   OUT defaults to $OUT, then to /var/cache/slipway/image
#
# Gives OUT/kernel-RECIPE-CONTENT/{vmlinuz,initrd,modules.squashfs,release} (RECIPE: hash of this file, settings.sh, initrd-init.sh, the
# suite and the architecture; CONTENT: hash of its files), the link OUT/kernel to it and OUT/kernel.previous to
# what was current before. Prints the directory. The time stamp of the directory is when its packages were last looked up.
#
# The same recipe, package versions and squashfs-tools give the same bytes. Any number may run at a time: one builds.
# Needs root, mmdebstrap, squashfs-tools and xz-utils (scripts/setup.sh installs them). SLIPWAY_MIRROR names another Debian
# mirror than mmdebstrap's own choice.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC

say() { printf 'kernel: %s\n' "$*" >&2; }
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
--*) die "usage: kernel.sh [--refresh | --back] [OUT]" ;;
esac
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
out=${1:-${OUT:-/var/cache/slipway/image}}
recipe=(kernel.sh settings.sh initrd-init.sh)
# The time stamp of everything in the initrd and the squashfs: when Debian 13 was released.
export SOURCE_DATE_EPOCH=1754697600
arch=$(dpkg --print-architecture)
# shellcheck source=builder/image/settings.sh
. "$here/settings.sh"
read_choices
# What the initrd needs to find and mount the root; all others come from the modules' squashfs.
early=(virtio_blk squashfs overlay)

hash=$(cd "$here" && { sha256sum -- "${recipe[@]}" && echo "$arch" && choices_text SUITE CHECK_VALID_UNTIL; } | sha256sum | cut -c1-16)

finish() {
	switch "$1" "$out/kernel" "$out/kernel.previous"
	printf '%s\n' "$out/$1"
	exit 0
}
# What is there of this recipe, if that is enough.
use_made() {
	local made
	[[ $verb == make ]] || return 0
	made=$(choose "$out/kernel" "kernel-$hash-*")
	[[ -z $made ]] || finish "$made"
}

use_made
[[ $(id -u) == 0 ]] || die "must be run as root"
mkdir -p -- "$out"
exec {lock}>"$out/.kernel.lock"
flock "$lock"
if [[ $verb == back ]]; then
	previous=$(readlink -- "$out/kernel.previous" || true)
	[[ -n $previous && -d $out/$previous ]] || die "there is no previous kernel in $out"
	swap "$out/kernel" "$out/kernel.previous"
	remember_back "$out/kernel" "kernel-$hash-*"
	say "$previous is the current kernel again; the next start of a machine takes it"
	finish "$previous"
fi
for tool in mmdebstrap mksquashfs xz; do
	[[ -n $(type -P "$tool") ]] || die "$tool is not installed (hint: make setup)"
done
# Another run may have made it while this one waited.
use_made

# Whatever is here was left by a run that was killed: we have the lock.
rm -rf --one-file-system -- "$out"/.kernel-building.*
tmp=$out/.kernel-building.$$
mkdir -- "$tmp"
trap 'rm -rf --one-file-system -- "$tmp"' EXIT
root=$tmp/root

began=$SECONDS
say "making a kernel in $out"
mapfile -t options < <(suite_options)
# Unpacked and not installed: no initramfs is made, no boot loader asked. With it come depmod and cpio.
if ! TMPDIR=$tmp mmdebstrap --quiet --variant=extract --format=directory "${options[@]}" \
	--include="linux-image-cloud-$arch,busybox-static,kmod,cpio" \
	"$SUITE" "$root" ${SLIPWAY_MIRROR:+"$SLIPWAY_MIRROR"} >"$tmp/log" 2>&1; then
	tail -n 40 -- "$tmp/log" >&2
	die "mmdebstrap failed (its last lines are above)"
fi
# Unpacking leaves the links out that a merged /usr has.
for dir in bin sbin lib lib64; do
	[[ ! -d $root/usr/$dir || -e $root/$dir ]] || ln -s "usr/$dir" "$root/$dir"
done
release=$(basename -- "$root"/usr/lib/modules/*)
modules=$root/usr/lib/modules/$release
mkdir -- "$tmp/made"
install -m 0644 "$root/boot/vmlinuz-$release" "$tmp/made/vmlinuz"

# Unpacked, because busybox's modprobe knows no xz; the squashfs packs them again.
find "$modules" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 -P "$(nproc)" xz --decompress
chroot "$root" /usr/sbin/depmod "$release"

# The initrd.
initrd=$tmp/initrd
install -d "$initrd"/{bin,modules,proc,sys,dev,base,layer,scratch,root}
install -m 0755 "$root/usr/bin/busybox" "$initrd/bin/busybox"
install -m 0755 "$here/initrd-init.sh" "$initrd/init"
n=10
load() {
	local name=$1 line path
	line=$(grep -E "/$name\.ko:" "$modules/modules.dep") || {
		grep -q "/$name\.ko$" "$modules/modules.builtin" || die "there is no module $name"
		return 0
	}
	# What it needs comes after the colon, the first to load last.
	for path in $(tac -s ' ' <<<"${line#*:} ") ${line%%:*}; do
		compgen -G "$initrd/modules/*-$(basename -- "$path")" >/dev/null && continue
		install -m 0644 "$modules/$path" "$initrd/modules/$((n++))-$(basename -- "$path")"
	done
}
for module in "${early[@]}"; do load "$module"; done
find "$initrd" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
mv -- "$initrd" "$root/initrd"
# Not packed: to unpack it takes longer than to read it.
chroot "$root" /usr/bin/busybox sh -c 'cd /initrd && /usr/bin/busybox find . | /usr/bin/busybox sort | /usr/bin/cpio --quiet --reproducible --owner=+0:+0 --create --format=newc' >"$tmp/made/initrd"

mksquashfs "$root/usr/lib/modules" "$tmp/made/modules.squashfs" -comp zstd -Xcompression-level 12 -all-root \
	-noappend -no-progress -quiet >"$tmp/log" 2>&1 || {
	cat -- "$tmp/log" >&2
	die "mksquashfs failed"
}
printf '%s\n' "$release" >"$tmp/made/release"
# The packages were only unpacked, so dpkg knows of none; the same versions give the same files.
content=$(cat -- "$tmp"/made/* | sha256sum | cut -c1-16)
name=kernel-$hash-$content
if [[ -d $out/$name ]]; then
	say "$name is what today's packages give"
	touch -- "$out/$name"
else
	sync -- "$tmp"/made/*
	mv -T -- "$tmp/made" "$out/$name"
	touch -- "$out/$name"
	say "made $name in $((SECONDS - began)) s: $release, $(du -sb -- "$out/$name" | cut -f1 | numfmt --to=iec-i)B"
fi
if [[ $verb == refresh ]]; then
	forget_back "$out/kernel"
	switch "$name" "$out/kernel" "$out/kernel.previous"
	remove_unused "$out" 'kernel-*' "$out/kernel" "$out/kernel.previous"
fi
finish "$name"
