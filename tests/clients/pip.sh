#!/bin/sh
# pip, with the Python of the tests: pip.sh URL
set -eu
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
# pip takes a password in the URL and no token, so AUTH is USER:PASSWORD@ here.
index=$(echo "$1" | sed "s|://|://${AUTH:-}|")
echo "> pip download"
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --no-input \
    --index-url "$index/simple" --dest "$scratch" tiny-part
cd "$scratch"
sha256sum ./*
