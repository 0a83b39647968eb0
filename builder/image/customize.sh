#!/bin/bash
# Last step of the recipe, run by mmdebstrap with the root's directory as $1: makes what a machine expects, and
# removes whatever differs from one build or one build machine to the next.
set -euo pipefail
root=${1:?root directory}

# What a machine mounts over; the root itself is read-only.
# (/proc, /sys and /dev are there already, and mounted while this runs.)
install -d -m 0755 "$root"/{run,etc/slipway,etc/docker}
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

# Names of the build machine's mirrors, caches, logs, backups.
rm -rf "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* \
	"$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old \
	"$root"/var/cache/ldconfig/* "$root"/var/lib/dpkg/*-old "$root"/var/log/* \
	"$root"/var/lib/dbus/machine-id "$root"/var/lib/systemd \
	"$root"/etc/{passwd,group,shadow,gshadow,subuid,subgid}- "$root"/etc/.pwd.lock \
	"$root"/run/* "$root"/tmp/* "$root"/usr/share/{doc,man,info,locale,lintian,bash-completion,zsh}/
find "$root/usr" -xdev -name __pycache__ -type d -prune -exec rm -rf {} +
