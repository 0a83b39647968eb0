#!/bin/bash
# Makes base images for the demo, the examples and the tests from Debian's own packages, and pushes them to a registry
# under the names that Dockerfiles use. No public image registry is needed.
#
#   base-images.sh OUT_DIR REGISTRY [NAME...]
#
#   OUT_DIR    where made images are kept and found again, such as /var/cache/slipway/base-images
#   REGISTRY   host:port, plain http
#   NAME       debian busybox python node rust gcc; by default debian and busybox
#
# They are Debian trixie's programs under the usual names, close enough for a Dockerfile: not the public images
# themselves. The same recipe and package versions give the same digests. What has ca-certificates also trusts the
# authorities that were added to this machine, since its network may re-sign TLS. Needs root, mmdebstrap, skopeo, jq,
# busybox-static. SLIPWAY_MIRROR names another Debian mirror than mmdebstrap's own choice.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=1754697600

say() { printf 'base images: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}

declare -A repository=([debian]=debian:trixie [busybox]=busybox:latest [python]=python:3 [node]=node:22
	[rust]=rust:1 [gcc]=gcc:14)
# Debian packages besides minbase.
declare -A include=([debian]='' [python]='ca-certificates,python3,python3-pip,python3-venv'
	[node]='ca-certificates,nodejs,npm' [rust]='ca-certificates,cargo,rustc,gcc,libc6-dev'
	[gcc]='ca-certificates,gcc,libc6-dev,make')
declare -A command=([debian]=bash [busybox]=sh [python]=python3 [node]=node [rust]=bash [gcc]=bash)

(($# >= 2)) || die "usage: base-images.sh OUT_DIR REGISTRY [NAME...]"
out=$1 registry=$2
shift 2
(($#)) || set -- debian busybox
for name in "$@"; do
	[[ -v repository[$name] ]] || die "no such image '$name' (hint: one of ${!repository[*]})"
done
for tool in mmdebstrap skopeo jq busybox; do
	[[ -n $(type -P "$tool") ]] || die "$tool is not installed (hint: make setup)"
done
[[ $(id -u) == 0 ]] || die "must be run as root"

arch=$(dpkg --print-architecture)
self=${BASH_SOURCE[0]}
scratch=
trap '[[ -z $scratch ]] || rm -rf --one-file-system -- "$scratch"' EXIT

# Removes from the root directory $1 what differs between builds and build machines; for mmdebstrap below.
clean_hook() {
	# shellcheck disable=SC2016 # mmdebstrap's shell expands it
	printf '%s' 'cd "$1" && : >etc/machine-id && : >etc/resolv.conf && echo localhost >etc/hostname &&
		rm -rf var/lib/apt/lists/* var/cache/apt/* var/cache/debconf/*-old var/cache/ldconfig/* var/lib/dpkg/*-old \
			var/log/* etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/subuid- etc/subgid- etc/.pwd.lock &&
		mkdir -p var/lib/apt/lists/partial var/cache/apt/archives/partial'
}

# What the public image of that name does besides installing packages.
habit_hook() {
	# shellcheck disable=SC2016 # mmdebstrap's shell expands it
	case $1 in
	# pip may install into the system, since the system is the image.
	python) printf '%s' 'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED && ln -s /usr/bin/python3 "$1/usr/local/bin/python"' ;;
	*) printf true ;;
	esac
}

# Certificates on standard input, one a line.
one_line() { awk '/BEGIN CERT/ { text = "" } { text = text $0 "|" } /END CERT/ { print text }' | sort -u; }

# The authorities that this machine trusts beyond Debian's own list, one a line.
added_authorities() {
	[[ -s /etc/ssl/certs/ca-certificates.crt ]] || return 0
	comm -23 <(one_line </etc/ssl/certs/ca-certificates.crt) \
		<(find /usr/share/ca-certificates -name '*.crt' -exec cat {} + 2>/dev/null | one_line)
}

# Makes the root trust them.
trust_hook() {
	local count=0 line
	mkdir -- "$scratch/added"
	while read -r line; do
		((count += 1))
		tr '|' '\n' <<<"$line" >"$scratch/added/machine-$count.crt"
	done <<<"$added"
	# shellcheck disable=SC2016 # mmdebstrap's shell expands it
	printf 'cp "%s"/* "$1/usr/local/share/ca-certificates/" && chroot "$1" update-ca-certificates' "$scratch/added"
}

# The root of image $1, as a tar on the file $2.
make_root() {
	local name=$1 tar=$2 root applet
	if [[ $name != busybox ]]; then
		local options=()
		for path in doc man info locale; do
			options+=("--dpkgopt=path-exclude=/usr/share/$path/*")
		done
		[[ -z ${include[$name]} ]] || options+=("--include=${include[$name]}")
		if [[ ${include[$name]} == *ca-certificates* && -n $added ]]; then
			options+=("--customize-hook=$(trust_hook)")
		fi
		TMPDIR=$scratch mmdebstrap --quiet --variant=minbase --format=tar "${options[@]}" \
			--customize-hook="$(habit_hook "$name")" --customize-hook="$(clean_hook)" \
			trixie "$tar" ${SLIPWAY_MIRROR:+"$SLIPWAY_MIRROR"} 2>"$scratch/log" || {
			tail -n 40 -- "$scratch/log" >&2
			die "mmdebstrap failed for $name (its last lines are above)"
		}
		return
	fi
	root=$scratch/root
	! ldd "$(type -P busybox)" >/dev/null 2>&1 || die "busybox is not static (hint: apt-get install busybox-static)"
	install -d "$root"/{bin,etc,root,usr/bin,usr/sbin,sbin,var,home,proc,sys,dev}
	install -d -m 1777 "$root/tmp"
	install -m 0755 "$(type -P busybox)" "$root/bin/busybox"
	for applet in $(busybox --list); do
		[[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
	done
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
	tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --file "$tar" -C "$root" .
}

# Makes image $1 in the directory $2 (as skopeo's "dir:" transport has it).
make_image() {
	local name=$1 dir=$2 diff_id layer config created
	mkdir -- "$dir"
	make_root "$name" "$scratch/root.tar"
	diff_id=$(sha256sum "$scratch/root.tar" | cut -d' ' -f1)
	gzip -n -6 <"$scratch/root.tar" >"$scratch/layer"
	layer=$(sha256sum "$scratch/layer" | cut -d' ' -f1)
	mv -- "$scratch/layer" "$dir/$layer"
	created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
	jq -cn --arg arch "$arch" --arg created "$created" --arg cmd "${command[$name]}" --arg diff_id "sha256:$diff_id" \
		'{architecture: $arch, os: "linux", created: $created,
		config: {Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], Cmd: [$cmd]},
		rootfs: {type: "layers", diff_ids: [$diff_id]},
		history: [{created: $created, created_by: "base-images.sh"}]}' >"$scratch/config"
	config=$(sha256sum "$scratch/config" | cut -d' ' -f1)
	mv -- "$scratch/config" "$dir/$config"
	jq -cn --arg config "sha256:$config" --argjson config_size "$(stat -c %s "$dir/$config")" \
		--arg layer "sha256:$layer" --argjson layer_size "$(stat -c %s "$dir/$layer")" \
		'{schemaVersion: 2, mediaType: "application/vnd.docker.distribution.manifest.v2+json",
		config: {mediaType: "application/vnd.docker.container.image.v1+json", size: $config_size, digest: $config},
		layers: [{mediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip", size: $layer_size, digest: $layer}]}' \
		>"$dir/manifest.json"
	printf 'Directory Transport Version: 1.1\n' >"$dir/version"
}

mkdir -p -- "$out"
added=$(added_authorities)
hash=$({ cat -- "$self" && printf '%s' "$arch${SLIPWAY_MIRROR:-}$added"; } | sha256sum | cut -c1-16)
for name in "$@"; do
	image=$out/$name-$hash
	if [[ ! -d $image ]]; then
		exec {lock}>"$out/.lock"
		flock "$lock"
		# Another run may have made it while this one waited.
		if [[ ! -d $image ]]; then
			rm -rf --one-file-system -- "$out"/.building.*
			scratch=$out/.building.$$
			mkdir -- "$scratch"
			began=$SECONDS
			say "making $name"
			make_image "$name" "$scratch/image"
			mv -T -- "$scratch/image" "$image"
			rm -rf --one-file-system -- "$scratch"
			scratch=
			say "made $name in $((SECONDS - began)) s: $(du -sb -- "$image" | cut -f1 | numfmt --to=iec-i)B"
		fi
		exec {lock}>&-
	fi
	# Blobs that the registry has are not sent again.
	skopeo --insecure-policy copy --quiet --dest-tls-verify=false "dir:$image" \
		"docker://$registry/library/${repository[$name]}" || die "cannot push $name to $registry"
done
