#!/usr/bin/env bash
# go_tool.sh NAME: puts a pinned Go program into build/bin; without Go it says so and ends with 3.
# Built once per version under ~/.cache/hatoba (or $HATOBA_CACHE), whatever checkout asks.
set -euo pipefail
cd "$(dirname "$0")/../.."

case "${1:-}" in
    grpcurl) package=github.com/fullstorydev/grpcurl/cmd/grpcurl version=v1.9.3 ;;
    protoc-gen-jsonschema)
        package=github.com/bufbuild/protoschema-plugins/cmd/protoc-gen-jsonschema version=v0.6.0 ;;
    *) echo "usage: $0 grpcurl|protoc-gen-jsonschema" >&2; exit 2 ;;
esac

cache="${HATOBA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hatoba}/go/$1-$version"
if [ ! -x "$cache/$1" ]; then
    if ! command -v go >/dev/null; then
        echo "skipped: $1 $version needs Go to be built, and there is no 'go' on PATH" >&2
        exit 3
    fi
    echo "building $1 $version" >&2
    mkdir -p "$cache"
    GOFLAGS=-mod=mod GOBIN="$cache" go install "$package@$version"
fi
mkdir -p build/bin
ln -sfn "$cache/$1" "build/bin/$1"
