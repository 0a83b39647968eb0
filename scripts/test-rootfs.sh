#!/usr/bin/env bash
# Prints the path of a tar of the builder image's files, for tests that start a dockerd of their own; makes it once per image.
set -euo pipefail
cache=${SLIPWAY_CACHE:-/var/cache/slipway}
image=$(readlink -f "$cache/image/base.squashfs")
tar=${image%.squashfs}.tar
exec 9> "$cache/image/.test-rootfs.lock"
flock 9
if [ ! -e "$tar" ]; then
  work=$(mktemp -d "$cache/image/.test-rootfs.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  unsquashfs -quiet -no-progress -dest "$work/root" "$image" >&2
  tar -C "$work/root" -cf "$work/tar" .
  mv "$work/tar" "$tar"
fi
printf '%s\n' "$tar"
