#!/bin/sh
# curl: curl.sh URL
set -eu
base=$1
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT

call() {
    method=$1 path=$2
    shift 2
    if [ -n "${AUTH:-}" ]; then
        set -- "$@" --header "Authorization: $AUTH"
    fi
    : >"$scratch/body"
    curl --silent --show-error --location --dump-header "$scratch/head" --output "$scratch/body" "$@" "$base$path"
    # --head writes the head there as well.
    [ "$method" != HEAD ] || : >"$scratch/body"
    echo "> $method $path"
    tr -d '\r' <"$scratch/head"
    sha256sum <"$scratch/body"
}

call GET "/json?x=1&y=%2F"
call GET /gzip --compressed
call GET /missing
call GET /moved
call GET /chunked
call GET /large
call HEAD /json --head
call POST /items --header "Content-Type: application/json" --data '{"name": "bolt"}'
call POST /items --header "Transfer-Encoding: chunked" --data-binary "@$0"
