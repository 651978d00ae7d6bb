"""An unmodified script as people write it: the standard library, one connection per request.

    python script.py http://127.0.0.1:8090/items 500 [TOKEN]

It imports nothing of this package. Its one line of output is JSON: the seconds that it took, and the median in ms.
"""

import json
import statistics
import sys
import time  # noqa: TID251  a script of a user's knows no clock of ours
import urllib.request


def main() -> None:
    """Send the requests one after another; whatever is not a 2xx ends it with a traceback."""
    url, count, *token = sys.argv[1:]
    headers = {"Authorization": f"Bearer {token[0]}"} if token else {}
    seconds = []
    for _ in range(int(count)):
        began = time.perf_counter()
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  the operator's URL
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            answer.read()
        seconds.append(time.perf_counter() - began)
    sys.stdout.write(json.dumps({"seconds": sum(seconds), "p50": statistics.median(seconds) * 1000}) + "\n")


if __name__ == "__main__":
    main()
