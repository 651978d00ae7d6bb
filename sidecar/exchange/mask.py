"""What hides the credentials that were put on requests, for those who look on: an upstream may send them back."""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable
from urllib.parse import quote

from sidecar.auth.dialect import Dress
from sidecar.auth.grant import JAR, Values
from sidecar.policy.headers import normal_name
from sidecar.policy.message import Fields, Request
from sidecar.secret import Secret

_CREDENTIALS = 64
_SHORTEST = 8


class Mask:
    """Makes stars of the last credentials that were presented to any upstream.

    It finds them as they are, with the slashes of JSON escaped, and percent-encoded. Lengths stay.
    """

    def __init__(self) -> None:
        self._presented: deque[Secret] = deque(maxlen=_CREDENTIALS)

    def noting(self, dress: Dress, names: frozenset[bytes]) -> Dress:
        """Return *dress* as it is, but that the values it is given, and fields of *names*, are hidden from then on."""

        def dressed(values: Values, request: Request, target: bytes) -> Fields:
            fields = dress(values, request, target)
            words = [Secret(word) for name, secret in values.items() for word in _texts(name, secret.reveal())]
            for name, value in fields:
                if name.lower() == b"cookie" or normal_name(name) in names:
                    words += [Secret(word) for word in re.split(r"[\s;=,]+", value.decode("latin-1"))]
            self._presented.extend(
                secret for secret in words if len(secret.reveal()) >= _SHORTEST and secret not in self._presented
            )
            return fields

        return dressed

    def __call__(self, data: bytes) -> bytes:
        """Return *data* with the credentials hidden."""
        plain = [secret.reveal() for secret in self._presented]
        forms = {form for each in plain for form in (each, each.replace("/", "\\/"), quote(each, safe=""))}
        return _starred(data, map(str.encode, forms))

    def beside(self, request: Request, shown: Request) -> Callable[[bytes], bytes]:
        """Return what hides also what *shown* lacks of *request*: the client's own, which may come back as well."""
        own = _words(request) - _words(shown)
        return lambda data: _starred(self(data), own)


def _texts(name: str, value: str) -> list[str]:
    """Return the texts in a value of a credential: itself, or those in the JSON that a recipe's values are.

    Of a cookie that is its value: its name and path are no secrets.
    """
    if not value.startswith(('"', "[", "{")):
        return [value]
    try:
        left, found = [json.loads(value)], []
    except ValueError:
        return [value]
    if name == JAR:
        left = [cookie[1] for cookie in left[0]]
    while left:
        part = left.pop()
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, dict | list):
            left += part.values() if isinstance(part, dict) else part
    return found


def _words(request: Request) -> set[bytes]:
    """Return the values in the target and the fields of *request* that are long enough to be a secret."""
    words = set()
    for text in (request.target, *(value for _, value in request.fields)):
        for part in re.split(rb"[\s;,&?]+", text):
            name, _, value = part.partition(b"=")
            words.add(value if value.strip(b"=") else name)
    return {word for word in words if len(word) >= _SHORTEST}


def _starred(data: bytes, words: Iterable[bytes]) -> bytes:
    # The longest first: one may begin with another.
    for word in sorted(words, key=len, reverse=True):
        data = data.replace(word, b"*" * len(word))
    return data
