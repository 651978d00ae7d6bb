# A sync with Teamcenter as people write it: curl with a cookie file, no retries. BASE_URL RUN, PASSWORD in the environment.
base=$1 run=$2 failures="" calls=0
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

call() { # EXPECTED SERVICE BODY
    calls=$((calls + 1))
    xsrf=$(awk '$6 == "XSRF-TOKEN" { print $7 }' "$work/jar" 2>/dev/null)
    printf '{"header":{"state":{},"policy":{}},"body":%s}' "$3" >"$work/body"
    code=$(curl -sS --max-time 120 --compressed -b "$work/jar" -c "$work/jar" -o "$work/answer" -w '%{http_code}' \
        -H 'Content-Type: application/json' -H "X-XSRF-TOKEN: $xsrf" --data-binary "@$work/body" \
        "$base/tc/JsonRestServices/$2")
    grep -Eq "\"\\.QName\": *\"[^\"]*$1\"" "$work/answer" || failures="$failures\"$2: $code\","
}

touch "$work/jar"
curl -sS --max-time 60 -b "$work/jar" -c "$work/jar" -o "$work/answer" "$base/getSessionVars"
call 'Session\.LoginResponse' Core-2011-06-Session/login \
    "{\"credentials\":{\"user\":\"script\",\"password\":\"$PASSWORD\",\"group\":\"\",\"role\":\"\",\"locale\":\"\",\"descrimator\":\"x\"}}"
session=$(awk '$6 == "JSESSIONID" { print $7 }' "$work/jar")
if [ -z "$failures" ]; then
    call Info Internal-AWS2-2019-12-DataManagement/getTCSessionAnalyticsInfo '{"extraInfoIn":{}}'
    for start in 0 25 50 75; do call Data Core-2006-03-DataManagement/getProperties "{\"start\":$start}"; done
    for number in 0 1 2 3 4 5 6 7 8 9 10 11; do
        call Create Core-2006-03-DataManagement/createItems "{\"items\":[{\"id\":\"$run-$number\"}]}"
    done
    call 'Exceptions\.ServiceException' Core-2007-09-Release/setReleaseStatus '{}'
    head -c 131072 /dev/urandom >"$work/$run.bin"
    calls=$((calls + 2))
    code=$(curl -sS --max-time 120 -b "$work/jar" -c "$work/jar" -o "$work/answer" -w '%{http_code}' \
        -H "X-XSRF-TOKEN: $xsrf" -F fmsTicket=t -F "fmsFile=@$work/$run.bin" "$base/fms/fmsupload")
    [ "$code" = 200 ] || failures="$failures\"fmsupload: $code\","
    call Tickets Core-2006-03-FileManagement/getFileReadTickets "{\"file\":\"$run.bin\"}"
    ticket=$(sed 's/.*"ticket": *"\([^"]*\)".*/\1/' "$work/answer")
    curl -sS --max-time 120 -b "$work/jar" -o "$work/file" "$base/fms/fmsdownload/x?ticket=$ticket"
    cmp -s "$work/file" "$work/$run.bin" || failures="$failures\"the file came back as another one\","
    call 'Session\.LogoutResponse' Core-2006-03-Session/logout '{}'
fi
printf '{"calls": %s, "failures": [%s], "session": "%s"}\n' "$calls" "${failures%,}" "$session"
[ -z "$failures" ]
