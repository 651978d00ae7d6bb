# A sync with Aras Innovator as people write it: curl and AML, no retries. BASE_URL RUN, the password in PASSWORD.
base=$1 run=$2 failures="" calls=0
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

call() { # EXPECTED METHOD URL, and what curl takes
    expected=$1 method=$2 url=$3
    shift 3
    calls=$((calls + 1))
    code=$(curl -sS --max-time 120 --compressed -o "$work/answer" -w '%{http_code}' -X "$method" \
        ${token:+-H "Authorization: Bearer $token"} "$@" "$url")
    [ "$code" = "$expected" ] || failures="$failures\"$method $url: $code\","
}

aml() { # what the answer has in it, SOAPAction, AML
    call 200 POST "$base/Server/InnovatorServer.aspx" -H "SOAPAction: $2" -H 'Content-Type: text/xml' \
        -d "<SOAP-ENV:Envelope xmlns:SOAP-ENV='http://schemas.xmlsoap.org/soap/envelope/'><SOAP-ENV:Body>$3</SOAP-ENV:Body></SOAP-ENV:Envelope>"
    grep -q "$1" "$work/answer" || failures="$failures\"$2: no $1\","
}

token=""
hash=$(printf %s "$PASSWORD" | md5sum | cut -d ' ' -f 1)
call 200 GET "$base/Server/OAuthServerDiscovery.aspx"
oauth=$(sed 's/.*"uri": *"\([^"]*\)".*/\1/' "$work/answer")
call 200 GET "$oauth.well-known/openid-configuration"
endpoint=$(sed 's/.*"token_endpoint": *"\([^"]*\)".*/\1/' "$work/answer")
call 200 POST "$endpoint" -d grant_type=password -d scope=Innovator -d client_id=IOMApp -d username=script \
    -d "password=$hash" -d database=InnovatorSolutions
token=$(sed 's/.*"access_token": *"\([^"]*\)".*/\1/' "$work/answer")
if [ "$code" = 200 ]; then
    for page in 1 2 3 4; do aml '<Result><Item' ApplyItem "<Item type='Part' action='get' page='$page' pagesize='25'/>"; done
    for number in 0 1 2 3 4 5 6 7 8 9 10 11; do
        aml '<Result><Item' ApplyItem "<Item type='Part' action=\"add\"><item_number>$run-$number</item_number></Item>"
    done
    # A fault that says that there is none.
    aml '<faultcode>0</faultcode>' ApplyItem "<Item type='Part' action=\"get\"><item_number>nobody</item_number></Item>"
    head -c 131072 /dev/urandom >"$work/drawing.bin"
    call 200 POST "$base/vault/odata/vault.BeginTransaction" -d ''
    call 200 POST "$base/vault/odata/vault.UploadFile?fileId=$run" -H 'transactionid: T1' -H 'Content-Type: application/octet-stream' \
        --data-binary "@$work/drawing.bin"
    call 200 POST "$base/vault/odata/vault.CommitTransaction" -H 'transactionid: T1' -d "$run"
    call 200 GET "$base/Server/odata/File('$run')/\$value"
    cmp -s "$work/answer" "$work/drawing.bin" || failures="$failures\"the file came back as another one\","
    aml '<Result' LogOff '<logoff skip_unlock="0"/>'
fi
printf '{"calls": %s, "failures": [%s], "session": "%s"}\n' "$calls" "${failures%,}" "$token"
[ -z "$failures" ]
