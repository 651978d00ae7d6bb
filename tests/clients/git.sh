#!/bin/sh
# git: git.sh URL
set -eu
if [ -n "${AUTH:-}" ]; then
    set -- "$1" -c "http.extraHeader=Authorization: $AUTH"
fi
url=$1
shift
echo "> git ls-remote"
GIT_TERMINAL_PROMPT=0 git "$@" ls-remote "$url/parts.git"
