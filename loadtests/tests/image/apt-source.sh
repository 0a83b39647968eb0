#!/bin/bash
# Makes an apt source with the packages that Docker calls its own, of the programs of a builder's root, and signs it.
#
#   apt-source.sh ROOT DIR    ROOT: a builder's root; gives DIR/repo (the source), DIR/key.asc and DIR/other.asc (nobody's key)
set -euo pipefail
umask 022
root=$1 dir=$2
arch=$(dpkg --print-architecture)
pool=$dir/repo/dists/stable/test/binary-$arch
mkdir -p -- "$pool"

# Package $1 with the paths $3... of the root; it needs $2.
package() {
	local name=$1 needs=$2 tree=$dir/tree path
	shift 2
	rm -rf -- "$tree"
	mkdir -p -- "$tree/DEBIAN"
	for path in "$@"; do
		[[ -e $root/$path || -L $root/$path ]] || continue
		install -D -- "$root/$path" "$tree/$path"
	done
	printf 'Package: %s\nVersion: 5:99.1-1~test\nArchitecture: %s\nMaintainer: test <test@localhost>\nDepends: %s\nDescription: test\n' \
		"$name" "$arch" "$needs" >"$tree/DEBIAN/control"
	dpkg-deb --root-owner-group -Znone --build "$tree" "$pool/$name.deb" >/dev/null
	rm -rf -- "$tree"
}
libraries='libc6, libseccomp2, libsystemd0'
package containerd.io "$libraries" usr/bin/containerd usr/bin/containerd-shim-runc-v2 usr/sbin/runc usr/bin/runc
package docker-ce "$libraries, iptables, containerd.io" usr/sbin/dockerd usr/bin/dockerd usr/sbin/docker-proxy usr/bin/docker-proxy \
	usr/sbin/docker-init usr/bin/docker-init
package docker-ce-cli "libc6" usr/bin/docker

cd -- "$dir/repo"
dpkg-scanpackages --multiversion "dists/stable/test/binary-$arch" >"$pool/Packages" 2>/dev/null
{
	printf 'Origin: test\nSuite: stable\nCodename: stable\nArchitectures: %s\nComponents: test\nDate: %s\nSHA256:\n' "$arch" "$(date -Ru)"
	printf ' %s %s %s\n' "$(sha256sum <"$pool/Packages" | cut -d' ' -f1)" "$(stat -c %s "$pool/Packages")" "test/binary-$arch/Packages"
} >"$dir/Release"
for key in key other; do
	home=$dir/gnupg-$key
	install -d -m 700 -- "$home"
	gpg --homedir "$home" --batch --quiet --passphrase '' --quick-generate-key "$key@localhost" rsa3072 sign never
	gpg --homedir "$home" --batch --armor --export >"$dir/$key.asc"
done
gpg --homedir "$dir/gnupg-key" --batch --quiet --clearsign --output "$dir/repo/dists/stable/InRelease" "$dir/Release"
for key in key other; do gpgconf --homedir "$dir/gnupg-$key" --kill all; done
