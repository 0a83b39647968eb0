#!/bin/bash
# `make install` in the test's virtual machine, where systemd is PID 1: both services run, as the units say; a restart of
# both ends no machine. /run/test has the programs, base.squashfs and tree.tar (scripts and docs); the disk `farm` is empty.
set -euo pipefail
bin=/run/test
finish() {
	local code=$?
	((code == 0)) || journalctl --no-pager -q -u slipway-host -u slipway-serve | tail -n 60
	exit "$code"
}
trap finish EXIT
wait_for() { # what, seconds on a computer with nothing else to do (five times as long are waited), command...
	local what=$1 until=$((SECONDS + 5 * $2))
	shift 2
	until "$@" >/dev/null 2>&1; do
		((SECONDS < until)) || { echo "waited too long for $what"; return 1; }
		sleep 0.2
	done
}

mkfs.ext4 -q /dev/disk/by-test/farm
mkdir -p /var/lib/slipway /var/cache/slipway/image /tree
mount /dev/disk/by-test/farm /var/lib/slipway
ln -s "$bin/base.squashfs" /var/cache/slipway/image/base.squashfs
tar -C /tree -xf "$bin/tree.tar"
cd /tree
SLIPWAY_BIN_DIR=$bin scripts/install.sh
wait_for "the host daemon" 60 test -S /run/slipway/host.sock
echo '# mine' >>/etc/slipway/host.toml
SLIPWAY_BIN_DIR=$bin scripts/install.sh >/dev/null
grep -q '^# mine$' /etc/slipway/host.toml
systemd-analyze verify /etc/systemd/system/slipway-*.service
udevadm verify --no-style /etc/udev/rules.d/12-slipway.rules
if journalctl --no-pager -q -u slipway-host | grep 'udev looks into volumes'; then exit 1; fi

export SLIPWAY_CONFIG_DIR=/root/slipway-config
data=/var/lib/slipway/serve
wait_for "the host daemon" 60 test -S /run/slipway/host.sock
# Its files are there since the first start, so only its answer tells.
login() {
	slipway login --server https://127.0.0.1:7443 --ca $data/ca.pem --token-stdin <$data/admin.token
}
wait_for "the control plane" 60 login
serve=$(systemctl show -P MainPID slipway-serve)
[[ $(stat -c %U "/proc/$serve") == slipway && $(stat -c '%U %a' $data) == 'slipway 700' ]]
grep -q '^CapBnd:\s*0*$' "/proc/$serve/status"
slipway orgs create acme
slipway orgs update acme --volume-size 2GiB --memory 512MiB
wait_for "the builder" 120 slipway builders ensure --org acme

machine=$(echo /sys/fs/cgroup/slipway/*/)
first=$(head -n 1 "$machine/cgroup.procs" "$machine"/*/cgroup.procs 2>/dev/null | grep -m 1 '^[0-9]')
systemctl restart slipway-host slipway-serve
wait_for "the builder, adopted" 60 bash -c \
	'[[ $(slipway builders list --org acme --json | jq -r ".[0].state" | tr A-Z a-z) == running ]]'
kill -0 "$first"
[[ $(systemctl is-active slipway-host slipway-serve | sort -u) == active ]]
slipway builders stop --org acme
slipway status
loadtests/vm/udev.sh /etc/udev/rules.d/12-slipway.rules
systemctl stop slipway-serve slipway-host
slipwayd host --config /etc/slipway/host.toml purge
