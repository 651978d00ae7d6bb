# curl as a WebDAV client: webdav.sh URL
dav=$1/dav
call() {
    curl --silent --show-error --fail --user old:stale --write-out '%{method} %{http_code}\n' "$@"
}
call --request MKCOL "$dav/drawings"
echo one | call --upload-file - "$dav/drawings/a.txt"
call --request COPY --header "Destination: $dav/drawings/b.txt" "$dav/drawings/a.txt"
call --request MOVE --header "Destination: $dav/c.txt" --dump-header - --output /dev/null "$dav/drawings/b.txt" | grep -Ei '^(location|move)'
lock=$(call --request LOCK --dump-header - --output /dev/null "$dav/c.txt" | sed -n 's/^Lock-Token: *\(<[^>]*>\).*/\1/Ip')
echo two | call --upload-file - --header "If: <$dav/c.txt> ($lock)" "$dav/c.txt"
call "$dav/c.txt"
call --request PROPFIND --header 'Depth: 1' "$dav/" | grep -o '<d:href>[^<]*'
call --request DELETE "$dav/c.txt"
