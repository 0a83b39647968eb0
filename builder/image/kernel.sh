#!/bin/bash
# Makes what a builder boots with when it is a virtual machine: Debian trixie's cloud kernel, a small initrd that puts the
# root file system together, and the kernel's modules as a squashfs.
#
#   kernel.sh [OUT]     OUT defaults to $OUT, then to /var/cache/slipway/image
#
# Gives OUT/kernel-HASH/{vmlinuz,initrd,modules.squashfs,release} (HASH: of the recipe, that is, of this file and
# initrd-init.sh, and the architecture) and the link OUT/kernel to it. Prints the directory. Does nothing else if the
# kernel of this recipe is there.
#
# The same recipe, package versions and squashfs-tools give the same bytes. Any number may run at a time: one builds.
# Needs root, mmdebstrap, squashfs-tools and xz-utils (scripts/setup.sh installs them). SLIPWAY_MIRROR names another Debian
# mirror than mmdebstrap's own choice.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
out=${1:-${OUT:-/var/cache/slipway/image}}
suite=trixie
recipe=(kernel.sh initrd-init.sh)
# The time stamp of everything in the initrd and the squashfs: when the suite was released.
export SOURCE_DATE_EPOCH=1754697600
# What the initrd needs to find and mount the root; all others come from the modules' squashfs.
early=(virtio_blk squashfs overlay)

say() { printf 'kernel: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}

arch=$(dpkg --print-architecture)
hash=$(cd "$here" && { sha256sum -- "${recipe[@]}" && echo "$arch"; } | sha256sum | cut -c1-32)
kernel=$out/kernel-$hash

finish() {
	if [[ $(readlink -- "$out/kernel" || true) != "kernel-$hash" ]]; then
		ln -sfn -- "kernel-$hash" "$out/kernel.new.$$"
		mv -Tf -- "$out/kernel.new.$$" "$out/kernel"
	fi
	printf '%s\n' "$kernel"
	exit 0
}

[[ -d $kernel ]] && finish

[[ $(id -u) == 0 ]] || die "must be run as root"
for tool in mmdebstrap mksquashfs xz; do
	[[ -n $(type -P "$tool") ]] || die "$tool is not installed (hint: make setup)"
done

mkdir -p -- "$out"
exec {lock}>"$out/.kernel.lock"
flock "$lock"
# Another run may have made it while this one waited.
[[ -d $kernel ]] && finish

# Whatever is here was left by a run that was killed: we have the lock.
rm -rf --one-file-system -- "$out"/.kernel-building.*
tmp=$out/.kernel-building.$$
mkdir -- "$tmp"
trap 'rm -rf --one-file-system -- "$tmp"' EXIT
root=$tmp/root

began=$SECONDS
say "making $kernel"
# Unpacked and not installed: no initramfs is made, no boot loader asked. With it come depmod and cpio.
if ! TMPDIR=$tmp mmdebstrap --quiet --variant=extract --format=directory \
	--include="linux-image-cloud-$arch,busybox-static,kmod,cpio" \
	"$suite" "$root" ${SLIPWAY_MIRROR:+"$SLIPWAY_MIRROR"} >"$tmp/log" 2>&1; then
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
sync -- "$tmp"/made/*
mv -T -- "$tmp/made" "$kernel"
say "made in $((SECONDS - began)) s: $release, $(du -sb -- "$kernel" | cut -f1 | numfmt --to=iec-i)B"
finish
