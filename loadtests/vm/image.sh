#!/bin/bash
# Makes what a test's virtual machine boots: Debian trixie with its cloud kernel, cgroup v2 alone, and what a Slipway host
# needs. loadtests/src/vm boots it.
#
#   image.sh [OUT]      OUT defaults to /var/cache/slipway/vm
#
# Gives OUT/HASH/{vmlinuz,initrd,root.squashfs} (HASH: of the recipe, that is, of the files beside this one) and the link
# OUT/current to it; prints its path. Does nothing else if it is there. Needs root, mmdebstrap, squashfs-tools and
# busybox-static. SLIPWAY_MIRROR names another Debian mirror than mmdebstrap's own choice.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=1754697600

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
out=${1:-/var/cache/slipway/vm}
say() { printf 'test machine: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}

arch=$(dpkg --print-architecture)
hash=$(cd "$here" && { sha256sum -- image.sh initrd-init machine-init machine.service packages && echo "$arch"; } |
	sha256sum | cut -c1-32)
made=$out/$hash

finish() {
	if [[ $(readlink -- "$out/current" || true) != "$hash" ]]; then
		ln -sfn -- "$hash" "$out/current.new.$$"
		mv -Tf -- "$out/current.new.$$" "$out/current"
	fi
	printf '%s\n' "$made"
	exit
}

mkdir -p -- "$out"
[[ ! -d $made ]] || finish
[[ $(id -u) == 0 ]] || die "must be run as root"
for tool in mmdebstrap mksquashfs busybox; do
	[[ -n $(type -P "$tool") ]] || die "$tool is not installed (hint: make setup)"
done
exec 9>"$out/.lock"
flock 9
[[ ! -d $made ]] || finish
rm -rf --one-file-system -- "$out"/.building.*
tmp=$out/.building.$$
mkdir -- "$tmp" "$tmp/made"
trap 'rm -rf --one-file-system -- "$tmp"' EXIT
began=$SECONDS
say "making $made (about a minute)"

# The kernel is unpacked, not installed: its scripts would make an initrd for a machine with disks of its own.
# shellcheck disable=SC2016 # mmdebstrap's shell expands it
kernel_hook='cd "$1/tmp" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" &&
	apt-get download "$(apt-cache depends linux-image-cloud-'$arch' | sed -n "s/.*Depends: \(linux-image-[0-9].*\)/\1/p")" &&
	dpkg-deb -x linux-image-*.deb "$1" && rm linux-image-*.deb &&
	chroot "$1" depmod "$(ls "$1/lib/modules")"'
include=$(sed 's/#.*//' "$here/packages" | xargs | tr ' ' ,)
excludes=()
for path in doc man info locale lintian bash-completion zsh; do
	excludes+=("--dpkgopt=path-exclude=/usr/share/$path/*")
done
# Slow under emulation, and of no use to a machine that lives for one command.
idle_units='getty-static.service e2scrub_reap.service ldconfig.service systemd-journal-catalog-update.service
	systemd-random-seed.service getty.target docker-registry.service'
idle_units=$(xargs <<<"$idle_units")
TMPDIR=$tmp mmdebstrap --quiet --variant=minbase --format=directory --include="$include" "${excludes[@]}" \
	--customize-hook="$kernel_hook" \
	--customize-hook="rm -rf \"\$1\"/var/lib/apt/lists/* \"\$1\"/var/cache/apt/*" \
	--customize-hook="install -m 0755 '$here/machine-init' \"\$1/sbin/slipway-test-init\"" \
	--customize-hook="install -m 0644 '$here/machine.service' \"\$1/etc/systemd/system/slipway-test.service\"" \
	--customize-hook='chroot "$1" systemctl --quiet enable slipway-test.service' \
	--customize-hook="chroot \"\$1\" systemctl --quiet mask $idle_units" \
	trixie "$tmp/root" ${SLIPWAY_MIRROR:+"$SLIPWAY_MIRROR"} 2>"$tmp/log" || {
	tail -n 40 -- "$tmp/log" >&2
	die "mmdebstrap failed (its last lines are above)"
}
cp -- "$tmp"/root/boot/vmlinuz-* "$tmp/made/vmlinuz"
rm -rf -- "$tmp"/root/boot/*

# The initrd: busybox, and the modules by which the root is found and mounted.
initrd=$tmp/initrd
install -d "$initrd"/{bin,proc,sys,dev,lower,upper,root,lib/modules}
install -m 0755 "$(type -P busybox)" "$initrd/bin/busybox"
install -m 0755 "$here/initrd-init" "$initrd/init"
version=$(ls "$tmp/root/lib/modules")
for module in virtio_pci virtio_blk squashfs overlay; do
	chroot "$tmp/root" modprobe --set-version "$version" --show-depends "$module"
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$1]++' >"$tmp/modules"
while read -r module; do
	name=$(basename -- "${module%.xz}")
	if [[ $module == *.xz ]]; then busybox xzcat "$tmp/root$module"; else cat -- "$tmp/root$module"; fi >"$initrd/lib/modules/$name"
	echo "$name" >>"$initrd/lib/modules/order"
done <"$tmp/modules"
touch "$initrd/lib/modules/order"
(cd "$initrd" && find . | sort | busybox cpio -o -H newc 2>/dev/null) | gzip -n -6 >"$tmp/made/initrd"

mksquashfs "$tmp/root" "$tmp/made/root.squashfs" -comp zstd -Xcompression-level 3 -b 256K -noappend -no-progress -quiet \
	>"$tmp/log" 2>&1 || {
	cat -- "$tmp/log" >&2
	die "mksquashfs failed"
}
mv -T -- "$tmp/made" "$made"
say "made in $((SECONDS - began)) s: $(du -sb -- "$made" | cut -f1 | numfmt --to=iec-i)B"
finish
