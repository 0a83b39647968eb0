#!/bin/bash
# Shows the ten tests of a JUnit file ($1) that took longest, in seconds.
set -euo pipefail
[[ -e $1 ]] || exit 0
echo "The ten slowest tests (all of them: $1):"
sed -nE 's/.*<testcase name="([^"]*)" classname="([^"]*)".* time="([0-9.]+)".*/\3 \2 \1/p' -- "$1" |
	sort -rn | awk 'NR <= 10 { printf "%9.1f s  %s %s\n", $1, $2, $3 }'
