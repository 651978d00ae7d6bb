# A sync with Arena as people write it: curl, no retries. BASE_URL RUN, the password in PASSWORD.
base=$1 run=$2 failures="" calls=0
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

call() { # EXPECTED METHOD PATH, and what curl takes
    expected=$1 method=$2 path=$3
    shift 3
    calls=$((calls + 1))
    code=$(curl -sS --max-time 120 --compressed -o "$work/answer" -D "$work/head" -w '%{http_code}' -X "$method" \
        ${session:+-H "arena_session_id: $session"} "$@" "$base$path")
    [ "$code" = "$expected" ] || failures="$failures\"$method $path: $code\","
}

session=""
printf '{"email":"script@plant.example","password":"%s","workspaceId":7}' "$PASSWORD" >"$work/login"
call 200 POST /login -H 'Content-Type: application/json' --data-binary "@$work/login"
session=$(sed 's/.*"arenaSessionId": *"\([^"]*\)".*/\1/' "$work/answer")
if [ "$code" = 200 ]; then
    for offset in 0 20 40 60; do call 200 GET "/items?offset=$offset&limit=20"; done
    for number in 0 1 2 3 4 5 6 7 8 9 10 11; do
        call 201 POST /items -H 'Content-Type: application/json' -d "{\"number\":\"$run-$number\"}"
    done
    head -c 131072 /dev/urandom >"$work/drawing.bin"
    call 201 POST /files -F "content=@$work/drawing.bin"
    guid=$(sed -n 's/\r$//; s/^[Xx]-[Aa]rena-[Ff]ile[Gg]uid: //p' "$work/head")
    call 200 GET "/files/$guid/content"
    cmp -s "$work/answer" "$work/drawing.bin" || failures="$failures\"the file came back as another one\","
    call 400 PUT /items/X/lifecycle -H 'Content-Type: application/json' -d '{}'
    grep -q '"code": *4001' "$work/answer" || failures="$failures\"the business error is another one\","
    call 200 PUT /logout
fi
printf '{"calls": %s, "failures": [%s], "session": "%s"}\n' "$calls" "${failures%,}" "$session"
[ -z "$failures" ]
