#!/bin/bash
# Last step of the recipe, run with the root's directory as $1: makes what a machine expects, and removes whatever differs from one
# build or one build machine to the next. With `as-it-is` as $2, for a root of the operator's, nothing else is removed.
set -euo pipefail
root=${1:?root directory}

# A root of the operator's may have links here, and an absolute one leads onto this computer.
top=$(realpath -- "$root")
for path in run etc/slipway etc/docker etc/docker/daemon.json proc sys dev var/lib/docker tmp etc/{resolv.conf,resolv.conf.new,hostname,hosts,machine-id}; do
	above=$(realpath -m -- "$(dirname -- "$root/$path")")
	[[ $above/ == "$top"/* ]] || {
		echo "image: /$(dirname -- "$path") is a link that leads out of the root (hint: make it a directory or a relative link)" >&2
		exit 1
	}
	[[ ! -L $root/$path ]] || rm -- "$root/$path"
done

# What a machine mounts over; the root itself is read-only.
# (mmdebstrap has /proc, /sys and /dev mounted while this runs.)
install -d -m 0755 "$root"/{run,etc/slipway,etc/docker}
mkdir -p -- "$root"/{proc,sys,dev}
install -d -m 0710 "$root/var/lib/docker"
install -d -m 1777 "$root/tmp"
install -m 0644 /dev/null "$root/etc/resolv.conf.new"
mv -T "$root/etc/resolv.conf.new" "$root/etc/resolv.conf"
printf '{}\n' >"$root/etc/docker/daemon.json"
printf 'builder\n' >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost builder\n::1\tlocalhost\n' >"$root/etc/hosts"
: >"$root/etc/machine-id"

# Nobody logs in and nobody changes identity here: no program has to gain anything by being started.
find "$root" -xdev -type f -perm /6000 -exec chmod a-s {} +

[[ ${2:-} != as-it-is ]] || exit 0

# One emulator is some megabytes, and there are three dozen: the processors that images are published for.
find "$root/usr/bin" -xdev -name 'qemu-*' ! -name qemu-aarch64 ! -name qemu-arm ! -name qemu-i386 ! -name qemu-ppc64le \
	! -name qemu-riscv64 ! -name qemu-s390x ! -name qemu-x86_64 -delete

# Names of the build machine's mirrors, caches, logs, backups.
rm -rf "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/preferences.d/* \
	"$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old \
	"$root"/var/cache/ldconfig/* "$root"/var/lib/dpkg/*-old "$root"/var/log/* \
	"$root"/var/lib/dbus/machine-id "$root"/var/lib/systemd \
	"$root"/etc/{passwd,group,shadow,gshadow,subuid,subgid}- "$root"/etc/.pwd.lock \
	"$root"/run/* "$root"/tmp/* "$root"/usr/share/{doc,man,info,locale,lintian,bash-completion,zsh}/
find "$root/usr" -xdev -name __pycache__ -type d -prune -exec rm -rf {} +
