#!/bin/sh
# GNU Wget, with what the user's ~/.wgetrc says: wget.sh URL
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
    # Exit code 8: an answer such as 404, which is printed here like any other.
    wget --no-verbose --server-response --content-on-error --output-document "$scratch/body" "$@" "$base$path" \
        2>"$scratch/head" || [ $? = 8 ]
    echo "> $method $path"
    sed -n 's/^  //p' "$scratch/head"
    sha256sum <"$scratch/body"
}

call GET "/json?x=1&y=%2F"
call GET /gzip
call GET /missing
call GET /moved
call GET /chunked
call GET /large
call HEAD /json --method HEAD
call POST /items --header "Content-Type: application/json" --post-data '{"name": "bolt"}'
