#!/usr/bin/env bash
# Installs Slipway on this computer from a release build: the programs, the builder image's place, settings (yours are kept)
# and systemd units. Run by `make install`, as root. With DESTDIR, everything goes below that directory and no user is made
# and no service touched: for packages.
set -euo pipefail
cd "$(dirname "$0")/.."
root=${DESTDIR:-}
from=${SLIPWAY_BIN_DIR:-target/release}
here=scripts/install

install -D -m 0755 "$from/slipway" "$root/usr/local/bin/slipway"
install -D -m 0755 "$from/slipwayd" "$root/usr/local/bin/slipwayd"
install -D -m 0755 "$from/slipway-push" "$root/usr/local/bin/slipway-push"
install -D -m 0755 "$from/slipway-guest" "$root/usr/lib/slipway/slipway-guest"
for shell in bash:usr/local/share/bash-completion/completions/slipway zsh:usr/local/share/zsh/site-functions/_slipway \
  fish:usr/local/share/fish/vendor_completions.d/slipway.fish; do
  install -D -m 0644 <("$from/slipway" completions "${shell%%:*}") "$root/${shell#*:}"
done
for page in docs/*.md README.md CHANGELOG.md; do
  install -D -m 0644 "$page" "$root/usr/local/share/doc/slipway/${page##*/}"
done
for unit in "$here"/*.service; do
  install -D -m 0644 "$unit" "$root/etc/systemd/system/${unit##*/}"
done
# No program of this computer looks into volumes.
install -D -m 0644 "$here/12-slipway.rules" "$root/etc/udev/rules.d/12-slipway.rules"

if [[ -z $root ]] && ! id slipway >/dev/null 2>&1; then
  useradd --system --home-dir /var/lib/slipway/serve --no-create-home --shell /usr/sbin/nologin --user-group slipway
fi
for settings in host serve; do
  to=$root/etc/slipway/$settings.toml
  # What the administrator wrote stays.
  [[ -e $to ]] || install -D -m 0644 "$here/$settings.toml" "$to"
done
[[ -z $root ]] || exit 0

install -d -m 0755 /var/lib/slipway
[[ ! -S /run/udev/control ]] || udevadm control --reload
install -d -m 0700 -o slipway -g slipway /var/lib/slipway/serve
if [[ -d /run/systemd/system ]]; then
  systemctl daemon-reload
  systemctl enable slipway-host.service slipway-serve.service
  systemctl restart slipway-host.service slipway-serve.service
  echo "installed and running: systemctl status slipway-host slipway-serve"
else
  echo "installed; no systemd runs here, so start these yourself:"
  echo "  slipwayd host --config /etc/slipway/host.toml                                    (root)"
  echo "  setpriv --reuid=slipway --regid=slipway --init-groups slipwayd serve --config /etc/slipway/serve.toml"
fi
cat <<'EOF'
log in as the administrator, on this computer:
  slipway login --server https://127.0.0.1:7443 --ca /var/lib/slipway/serve/ca.pem --token-stdin < /var/lib/slipway/serve/admin.token
then: slipway orgs create ORG; slipway tokens create TOKEN-NAME --org ORG
EOF
