#!/bin/bash
# The client compiles for the computers of its users: Windows, macOS, Linux on ARM. Type-checked only: C parts of its libraries (ring,
# zstd) need a compiler of the system, which a stub stands for, since nothing is linked. Run by `make lint`.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
targets=(x86_64-pc-windows-gnu aarch64-apple-darwin aarch64-unknown-linux-musl)
stub=$(mktemp -d)
trap 'rm -rf -- "$stub"' EXIT
# Makes whatever file it is asked for, empty.
cat >"$stub/cc" <<'EOF'
#!/bin/bash
last=
for word in "$@"; do
	if [[ $last == -o || $word == *.a ]]; then : >"$word"; fi
	last=$word
done
EOF
chmod +x "$stub/cc"
for target in "${targets[@]}"; do
	if ! rustup target list --installed 2>/dev/null | grep -qx "$target" && ! rustup target add "$target" >"$stub/log" 2>&1; then
		echo "client for $target: NOT CHECKED, its standard library cannot be had here: $(tail -n 1 "$stub/log")" >&2
		continue
	fi
	name=${target//-/_}
	env -u CARGO_RESOLVER_FEATURE_UNIFICATION "CC_$name=$stub/cc" "AR_$name=$stub/cc" CARGO_TARGET_DIR=target/elsewhere \
		cargo check --quiet --locked -p slipway --target "$target" --config 'build.rustflags=["-Dwarnings"]'
	echo "client for $target: compiles"
done
