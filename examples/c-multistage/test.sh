#!/bin/sh
# Runs a wordcount program on inputs whose answer is known.
set -eu
check() {
    got=$(printf "$1" | "$2")
    [ "$got" = "$3" ] || { echo "'$1': got '$got', wanted '$3'" >&2; exit 1; }
}
check '' "$1" '0 0 0'
check 'one' "$1" '0 1 3'
check 'one two\nthree\n' "$1" '2 3 14'
echo "all right"
