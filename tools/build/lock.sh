#!/usr/bin/env bash
# Renews locks/*.txt. UPGRADE=1 moves to the newest versions that the .in files and pyproject.toml admit.
# No file names an index: whoever installs uses the one their machine is set up for.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=.venv/bin/uv
export UV_PYTHON_DOWNLOADS=never UV_CUSTOM_COMPILE_COMMAND="make lock"

lock() {
    local out="locks/$1.txt"
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes ${UPGRADE:+--upgrade} \
        --no-emit-index-url --no-emit-find-links --output-file "$out" "$@"
    echo "$out: $(grep -c '==' "$out") packages"
}

lock bootstrap locks/bootstrap.in
lock gen locks/gen.in
lock emulators locks/emulators.in
lock base pyproject.toml --constraint locks/newest.in
lock server pyproject.toml --extra server --extra worker --constraint locks/newest.in
lock server-pb6 pyproject.toml --extra server --extra worker --constraint locks/floor.in
lock dev pyproject.toml --all-extras --constraint locks/newest.in

if grep -nE 'https?://|find-links|index-url' locks/*.txt; then
    echo "a lock names a host" >&2
    exit 1
fi
