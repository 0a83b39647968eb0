#!/bin/bash
# A farm in the test's virtual machine: host daemon, control plane, registry, and one `slipway deploy`, cold and warm.
#
#   deploy.sh [encrypted]
#
# encrypted: the volumes are encrypted ones of a thin pool on the empty disk `pool`, and the host daemon is killed in between.
# /run/test has slipway, slipway-guest, base.squashfs and busybox; the disk `farm` is empty.
set -euo pipefail
at() { printf '%s: %s\n' "$(cut -d' ' -f1 /proc/uptime)" "$*"; }
bin=/run/test work=/farm gateway=10.209.0.1
registry=$gateway:5000
mkdir "$work"
mkfs.ext4 -q /dev/disk/by-test/farm
mount /dev/disk/by-test/farm "$work"
chmod 0755 "$work"
finish() {
	local code=$?
	((code == 0)) || tail -n 60 "$work"/*.log "$work"/host/machines/*/console.log
	exit "$code"
}
trap finish EXIT
pid_of_machine() { jq .phase.process.pid "$work"/host/machines/*/record.json; }
wait_for() { # what, seconds on a computer with nothing else to do (five times as long are waited), command...
	local what=$1 until=$((SECONDS + 5 * $2))
	shift 2
	until "$@" >/dev/null 2>&1; do
		((SECONDS < until)) || { at "waited too long for $what"; return 1; }
		sleep 0.2
	done
}

at "cgroup $(cat /proc/self/cgroup), controllers $(cat /sys/fs/cgroup/cgroup.controllers), enabled $(cat /sys/fs/cgroup/cgroup.subtree_control)"
[[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]]
cat >"$work/host.toml" <<EOF
state_dir = "$work/host"
run_dir = "$work/run"
socket = "$work/host.sock"
pool_dir = "$work/pool"
image_base = "$bin/base.squashfs"
guest_binary = "$bin/slipway-guest"
allowed_uids = [65534]
socket_group = "nogroup"
allow = ["$registry"]
registry_mirrors = ["http://$registry"]
insecure_registries = ["$registry"]
EOF
if [[ ${1:-} == encrypted ]]; then
	vgcreate -q fast /dev/disk/by-test/pool
	lvcreate -q --type thin-pool -L 4G --poolmetadatasize 16M --zero y -n pool fast
	lvchange -q --errorwhenfull y fast/pool
	printf '%s\n' 'encryption = "required"' '[lvm]' 'volume_group = "fast"' 'thin_pool = "pool"' >>"$work/host.toml"
fi
cat >"$work/serve.toml" <<EOF
data_dir = "$work/serve"
listen_api = "127.0.0.1:0"
listen_docker = "127.0.0.1:0"
listen_buildkit = "127.0.0.1:0"
[[hosts]]
name = "vm"
region = "local"
socket = "$work/host.sock"
EOF
cat >"$work/registry.yml" <<EOF
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}, delete: {enabled: true}}
http: {addr: "$registry"}
EOF
install -d -o 65534 -g 65534 -m 0700 "$work/serve"
"$bin/slipwayd" host --config "$work/host.toml" >"$work/host.log" 2>&1 &
host=$!
wait_for "the host daemon" 60 test -S "$work/host.sock"
at "host daemon is up"
setpriv --reuid=65534 --regid=65534 --clear-groups "$bin/slipwayd" serve --config "$work/serve.toml" >"$work/serve.log" 2>&1 &
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
wait_for "the control plane" 60 test -s "$work/serve/addresses.json"
wait_for "the registry" 60 curl -fsS "http://$registry/v2/"
at "control plane and registry are up"

export SLIPWAY_CONFIG_DIR=$work/config
api=$(jq -r .api "$work/serve/addresses.json")
"$bin/slipway" login --server "https://$api" --ca "$work/serve/ca.pem" --token-stdin <"$work/serve/admin.token"
"$bin/slipway" orgs create vm
"$bin/slipway" orgs update vm --idle 5s --volume-size 3GiB --memory 1GiB
mkdir "$work/app"
cp "$(type -P busybox)" "$work/app/busybox"
cat >"$work/app/Dockerfile" <<'EOF'
FROM scratch
COPY busybox /bin/sh
RUN echo built in $(cat /proc/self/cgroup) > /built
EOF
"$bin/slipway" deploy "$work/app" --org vm --app app --image "$registry/app:v1" --remote-only
at "deployed cold"

if [[ ${1:-} == encrypted ]]; then
	# What the cache is on.
	[[ $(lvs --noheadings -o lv_tags fast) == *slipway.luks* ]]
	dmsetup table --target crypt | tee /dev/stderr | grep -q '^slipway-vol_.*aes-xts-plain64'
	grep -q '^/dev/mapper/slipway-vol_' "/proc/$(pid_of_machine)/mounts"
	# Nobody but the machine has it: programs that copy all mounts have nothing to keep, for as long as they live.
	if grep 'slipway-vol_' /proc/mounts; then exit 1; fi
	for propagation in private slave shared; do
		unshare --mount --propagation "$propagation" sleep 3000 &
	done
	systemd-run --quiet --unit copier -p PrivateTmp=yes -p PrivateMounts=yes sleep 3000
	systemctl restart copier
	wait_for "a service with mounts of its own" 60 systemctl is-active copier
	# The machine goes on without its host's daemon, and the next one has to be lent the key anew.
	kill -9 "$host"
	wait "$host" || true
	rm "$work/host.sock"
	"$bin/slipwayd" host --config "$work/host.toml" >>"$work/host.log" 2>&1 &
	wait_for "the host daemon" 60 test -S "$work/host.sock"
	at "host daemon is up again"
fi

# The machine's limits are real ones, and its own root cannot lift them.
machine=$(echo /sys/fs/cgroup/slipway/*/)
grep -H . "$machine"/{memory.max,pids.max,cpu.max,cgroup.subtree_control}
[[ $(cat "$machine/memory.max") != max && $(cat "$machine/pids.max") != max && $(cat "$machine/cpu.max") != max* ]]
[[ $(stat -c %u "$machine/memory.max") == 0 && $(stat -c %u "$machine/cgroup.procs") != 0 ]]

"$bin/slipway" deploy "$work/app" --org vm --app app --image "$registry/app:v2" --remote-only
at "deployed warm"
curl -fsS -H 'Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json' \
	"http://$registry/v2/app/manifests/v2" | jq -e '.layers | length == 2' >/dev/null
stopped() { [[ $("$bin/slipway" builders list --org vm --json | jq -r '.[0].state' | tr A-Z a-z) == stopped ]]; }
wait_for "the builder's own end" 90 stopped
at "the builder ended itself"
no_cgroup() { [[ -z $(ls -d /sys/fs/cgroup/slipway/*/ 2>/dev/null) ]]; }
wait_for "the end of its cgroup" 5 no_cgroup
if [[ ${1:-} == encrypted ]]; then
	# Asleep, nothing of it is open; it wakes with its cache.
	[[ $(dmsetup ls --target crypt) != *slipway* ]]
	"$bin/slipway" deploy "$work/app" --org vm --app app --image "$registry/app:v3" --remote-only 2>&1 | tee "$work/third"
	grep -q 'steps *2 of 2 from the cache' "$work/third"
	at "deployed after a wake"
	systemctl is-active copier
	[[ $(jobs -r | grep -c unshare) == 3 ]]
	wait_for "the builder's own end" 90 stopped
fi
"$bin/slipwayd" host --config "$work/host.toml" purge || at "purge failed"
at done
