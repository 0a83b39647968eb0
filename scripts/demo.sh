#!/usr/bin/env bash
# The main job, shown: a real multi-step Dockerfile is built on the org's own builder, pushed to a real registry,
# built again from the warm cache; the builder ends itself when idle and comes back with its cache.
# Run by `make demo`, as root. Everything it starts, it ends; everything it makes is below one temporary directory.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$PWD/target/debug
cache=${SLIPWAY_CACHE:-/var/cache/slipway}
work=$(mktemp -d /var/tmp/slipway-demo.XXXXXX)
chmod 0755 "$work"
gateway=10.210.0.1
registry=$gateway:5000
host_pid= serve_pid= registry_pid=

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }
logs() { for f in "$work"/*.log; do printf -- '--- %s\n' "$f"; tail -n 40 "$f"; done >&2; }

finish() {
  local code=$?
  trap - EXIT
  [ "$code" = 0 ] || logs
  [ -z "$serve_pid" ] || { kill "$serve_pid" 2>/dev/null && wait "$serve_pid" || true; }
  [ -z "$host_pid" ] || { kill "$host_pid" 2>/dev/null && wait "$host_pid" || true; }
  "$bin/slipwayd" host --config "$work/host.toml" purge || true
  [ -z "$registry_pid" ] || { kill "$registry_pid" 2>/dev/null && wait "$registry_pid" || true; }
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

wait_for() { # what, seconds, command...
  local what=$1 until=$(($(date +%s) + $2)); shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$until" ] || { echo "error: waited too long for $what" >&2; return 1; }
    sleep 0.1
  done
}

say "1. a host (root) and a control plane (an ordinary user), both from this checkout"
cat > "$work/host.toml" <<EOF
state_dir = "$work/host"
run_dir = "$work/run"
socket = "$work/host.sock"
pool_dir = "$work/pool"
# Nothing of a farm that is installed on this computer is touched, above all not by the purge at the end.
cgroup_parent = "slipway-demo"
nft_table = "slipway-demo"
interface = "slipdemo0"
veth_prefix = "sldemo"
machine_cidr = "10.210.0.0/16"
image_base = "$cache/image/base.squashfs"
guest_binary = "$bin/slipway-guest"
allowed_uids = [65534]
socket_group = "nogroup"
allow = ["$registry"]
registry_mirrors = ["http://$registry"]
insecure_registries = ["$registry"]
EOF
cat > "$work/serve.toml" <<EOF
data_dir = "$work/serve"
listen_api = "127.0.0.1:0"
listen_docker = "127.0.0.1:0"
listen_buildkit = "127.0.0.1:0"

[[hosts]]
name = "demo"
region = "local"
socket = "$work/host.sock"
EOF
install -d -o 65534 -g 65534 -m 0700 "$work/serve"
install -m 0755 "$bin/slipwayd" "$work/slipwayd"
"$bin/slipwayd" host --config "$work/host.toml" > "$work/host.log" 2>&1 & host_pid=$!
wait_for "the host daemon" 20 test -S "$work/host.sock"
setpriv --reuid=65534 --regid=65534 --clear-groups "$work/slipwayd" serve --config "$work/serve.toml" > "$work/serve.log" 2>&1 & serve_pid=$!
wait_for "the control plane" 20 test -s "$work/serve/addresses.json"
api=$(jq -r .api "$work/serve/addresses.json")
echo "host daemon: pid $host_pid; control plane: https://$api"

say "2. a real registry, with base images made from Debian's packages (no public registry is needed)"
cat > "$work/registry.yml" <<EOF
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}, delete: {enabled: true}}
http: {addr: "$registry"}
EOF
docker-registry serve "$work/registry.yml" > "$work/registry.log" 2>&1 & registry_pid=$!
wait_for "the registry" 20 curl -fsS "http://$registry/v2/"
builder/image/base-images.sh "$cache/base-images" "$registry" debian

say "3. log in, and deploy: the builder is made, the image is built on it and pushed from it"
export SLIPWAY_CONFIG_DIR=$work/config
run "$bin/slipway" login --server "https://$api" --ca "$work/serve/ca.pem" --token-stdin < "$work/serve/admin.token"
run "$bin/slipway" orgs create demo
run "$bin/slipway" orgs update demo --idle 5s --volume-size 5GiB
cp -r examples/hello "$work/hello"
deploy() { run "$bin/slipway" deploy "$work/hello" --org demo --app hello --image "$registry/hello:$1" --remote-only; }
t0=$(date +%s%N); deploy v1; t1=$(date +%s%N)

say "4. deploy again, nothing changed: the warm cache"
t2=$(date +%s%N); deploy v2; t3=$(date +%s%N)

say "5. one line changed"
printf '\n/* changed */\n' >> "$work/hello/main.c"
t4=$(date +%s%N); deploy v3; t5=$(date +%s%N)

say "6. the image is in the registry; it is pulled back by another program"
run skopeo inspect --tls-verify=false --format '{{.Name}} {{.Digest}} {{len .Layers}} layers' "docker://$registry/hello:v3"

say "7. nobody builds: the builder ends itself"
stopped() { [ "$("$bin/slipway" builders list --org demo --json | jq -r '.[0].state' | tr A-Z a-z)" = stopped ]; }
wait_for "the builder's own end" 60 stopped
run "$bin/slipway" builders list --org demo

say "8. the next deploy wakes it, with its cache"
t6=$(date +%s%N); deploy v4; t7=$(date +%s%N)

ms() { echo "$((($2 - $1) / 1000000)) ms"; }
say "done"
printf '%-44s %s\n' \
  "first deploy (builder made, cold cache)" "$(ms "$t0" "$t1")" \
  "unchanged (warm builder)" "$(ms "$t2" "$t3")" \
  "one line changed" "$(ms "$t4" "$t5")" \
  "unchanged, builder was stopped" "$(ms "$t6" "$t7")"
