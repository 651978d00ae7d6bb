#!/bin/sh
# curl, told everything by a file: curl_config.sh URL
set -eu
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT

cat >"$scratch/export.conf" <<END
silent
show-error
location
dump-header = "$scratch/head"
header = "X-From: export.conf"
url = "$1/json"
output = "$scratch/body"
next
silent
dump-header = "$scratch/head-2"
url = "$1/missing"
output = "$scratch/body-2"
END
if [ -n "${AUTH:-}" ]; then
    sed -i "/^silent/a header = \"Authorization: $AUTH\"" "$scratch/export.conf"
fi

curl --config "$scratch/export.conf"
echo "> GET /json"
tr -d '\r' <"$scratch/head"
sha256sum <"$scratch/body"
echo "> GET /missing"
tr -d '\r' <"$scratch/head-2"
sha256sum <"$scratch/body-2"
