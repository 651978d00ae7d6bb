# curl with a cookie file: curl_jar.sh URL KIND...
base=$1
shift
for kind in "$@"; do
    jar=$(mktemp)
    led=$(curl --silent --show-error --location --cookie "$jar" --cookie-jar "$jar" "$base/login/$kind")
    echo "$kind $led $(curl --silent --show-error --cookie "$jar" "$base/me")"
    rm "$jar"
done
