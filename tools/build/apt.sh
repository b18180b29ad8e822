#!/usr/bin/env bash
# apt.sh PACKAGE...: installs Debian packages where that is possible, else says what it skips and why.
# Ends with 0 when all are there, 3 when it skipped some. No service of theirs is started.
set -euo pipefail

missing=()
for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

skip() {
    echo "skipped: ${missing[*]}: $1" >&2
    exit 3
}
command -v apt-get >/dev/null || skip "this is no Debian, there is no apt-get"
[ "$(id -u)" = 0 ] || skip "installing packages needs root"

# A package's start-up script asks this file whether it may start its service; 101 says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "${missing[@]}" >/dev/null; }
if ! install 2>/dev/null; then
    apt-get update -qq || skip "apt-get update failed"
    install || skip "apt-get install failed"
fi
echo "installed: ${missing[*]}"
