# A sync with Salesforce as people write it: SOAP with curl, the session in the body, then Bulk. BASE_URL RUN, PASSWORD.
base=$1 run=$2 failures="" calls=0 session="" url="$base/services/Soap/u/59.0"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

soap() { # EXPECTED BODY
    calls=$((calls + 1))
    {
        printf '<?xml version="1.0" encoding="UTF-8"?>'
        printf '<env:Envelope xmlns:env="http://schemas.xmlsoap.org/soap/envelope/" xmlns:u="urn:partner.soap.sforce.com">'
        [ -z "$session" ] || printf '<env:Header><u:SessionHeader><u:sessionId>%s</u:sessionId></u:SessionHeader></env:Header>' "$session"
        printf '<env:Body>%s</env:Body></env:Envelope>' "$2"
    } >"$work/body"
    code=$(curl -sS --max-time 120 -o "$work/answer" -w '%{http_code}' -H 'Content-Type: text/xml' -H 'SOAPAction: ""' \
        --data-binary "@$work/body" "$url")
    grep -q "$1" "$work/answer" || failures="$failures\"$1: $code $(head -c 200 "$work/answer" | tr -d '\n"\\')\","
}

soap loginResponse "<u:login><u:username>script</u:username><u:password>$PASSWORD</u:password></u:login>"
if [ -z "$failures" ]; then
    session=$(sed 's/.*<sessionId>\([^<]*\)<.*/\1/' "$work/answer")
    url=$(sed 's/.*<serverUrl>\([^<]*\)<.*/\1/' "$work/answer")
    for _ in 1 2 3 4; do soap 'Old 24' '<u:query><u:queryString>SELECT Name FROM Account</u:queryString></u:query>'; done
    for number in 0 1 2 3 4 5 6 7 8 9 10 11; do
        soap createResponse "<u:create><u:sObjects><u:type>Account</u:type><u:Name>$run-$number</u:Name></u:sObjects></u:create>"
    done
    code=$(curl -sS --max-time 120 -o "$work/answer" -w '%{http_code}' -H 'Content-Type: application/xml' \
        -H "X-SFDC-Session: $session" --data-binary "<jobInfo><externalId>bulk $run</externalId></jobInfo>" \
        "$base/services/async/59.0/job")
    [ "$code" = 201 ] || failures="$failures\"bulk: $code\","
    soap logoutResponse '<u:logout/>'
fi
printf '{"calls": %s, "failures": [%s], "session": "%s"}\n' "$calls" "${failures%,}" "$session"
[ -z "$failures" ]
