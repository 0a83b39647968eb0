#!/bin/bash
# Makes the root image that every builder machine boots: a read-only squashfs of Debian trixie with Docker's engine.
#
#   build.sh [OUT]      OUT defaults to $OUT, then to /var/cache/slipway/image
#
# Gives OUT/base-HASH.squashfs (HASH: of the recipe, that is, of the files beside this one, and the architecture),
# OUT/base-HASH.packages (names and versions of what is in it), and the links OUT/base.squashfs and
# OUT/base.packages to them. Prints the image's path. Does nothing else if the image of this recipe is there.
#
# The same recipe, package versions and squashfs-tools give the same bytes. Any number may run at a time: one builds.
# Needs root, mmdebstrap and squashfs-tools (scripts/setup.sh installs them). SLIPWAY_MIRROR names another Debian mirror
# than mmdebstrap's own choice.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
out=${1:-${OUT:-/var/cache/slipway/image}}
suite=trixie
recipe=(build.sh customize.sh packages)
# The time stamp of everything in the image: when the suite was released.
export SOURCE_DATE_EPOCH=1754697600

say() { printf 'image: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}

arch=$(dpkg --print-architecture)
hash=$(cd "$here" && { sha256sum -- "${recipe[@]}" && echo "$arch"; } | sha256sum | cut -c1-32)
image=$out/base-$hash.squashfs
packages=$out/base-$hash.packages

# Points NAME at TARGET in one step.
link() {
	local target=$1 name=$2
	[[ $(readlink -- "$name" || true) == "$target" ]] && return
	ln -sfn -- "$target" "$name.new.$$"
	mv -Tf -- "$name.new.$$" "$name"
}

finish() {
	link "base-$hash.squashfs" "$out/base.squashfs"
	link "base-$hash.packages" "$out/base.packages"
	printf '%s\n' "$image"
	exit 0
}

[[ -s $image && -s $packages ]] && finish

[[ $(id -u) == 0 ]] || die "must be run as root"
for tool in mmdebstrap mksquashfs; do
	[[ -n $(type -P "$tool") ]] || die "$tool is not installed (hint: make setup)"
done

mkdir -p -- "$out"
exec {lock}>"$out/.lock"
flock "$lock"
# Another run may have made it while this one waited.
[[ -s $image && -s $packages ]] && finish

# Whatever is here was left by a run that was killed: we have the lock.
rm -rf --one-file-system -- "$out"/.building.*
tmp=$out/.building.$$
mkdir -- "$tmp"
trap 'rm -rf --one-file-system -- "$tmp"' EXIT

include=$(sed 's/#.*//' "$here/packages" | xargs | tr ' ' ,)
excludes=()
for path in doc man info locale lintian bash-completion zsh; do
	excludes+=("--dpkgopt=path-exclude=/usr/share/$path/*")
done
began=$SECONDS
say "building $image (about a minute)"
# The tar is sorted and its times are those of the epoch above; so are the file system's own. zstd in large blocks
# costs 0.1 s more than lz4 when dockerd is first read, and takes a quarter less room.
if ! TMPDIR=$tmp mmdebstrap --quiet --variant=minbase --format=tar --include="$include" "${excludes[@]}" \
	--customize-hook="$here/customize.sh \"\$1\"" \
	--customize-hook="dpkg-query --admindir=\"\$1/var/lib/dpkg\" -W -f '\${Package} \${Version} \${Architecture}\n' >'$tmp/packages'" \
	"$suite" "$tmp/root.tar" ${SLIPWAY_MIRROR:+"$SLIPWAY_MIRROR"} 2>"$tmp/log"; then
	tail -n 40 -- "$tmp/log" >&2
	die "mmdebstrap failed (its last lines are above)"
fi
mksquashfs - "$tmp/squashfs" -tar -comp zstd -Xcompression-level 12 -b 256K -root-mode 0755 -root-uid 0 -root-gid 0 \
	-noappend -no-progress -quiet <"$tmp/root.tar" >"$tmp/log" 2>&1 || {
	cat -- "$tmp/log" >&2
	die "mksquashfs failed"
}
sync -- "$tmp/squashfs" "$tmp/packages"
# The image last: it is what says that all is there.
mv -f -- "$tmp/packages" "$packages"
mv -f -- "$tmp/squashfs" "$image"
say "built in $((SECONDS - began)) s: $(stat -c %s -- "$image" | numfmt --to=iec-i)B, $(wc -l <"$packages") packages"
finish
