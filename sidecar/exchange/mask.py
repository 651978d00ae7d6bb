"""What hides the credentials that were put on requests, for those who look on: an upstream may send them back."""

from collections import deque
from urllib.parse import quote

from sidecar.exchange.ports import Present
from sidecar.secret import Secret

_CREDENTIALS = 64


class Mask:
    """Makes stars of the last credentials that were presented to any upstream.

    It finds them as they are, with the slashes of JSON escaped, and percent-encoded. Lengths stay.
    """

    def __init__(self) -> None:
        self._presented: deque[Secret] = deque(maxlen=_CREDENTIALS)

    def noting(self, present: Present) -> Present:
        """Return *present* as it is, but that what it presents is hidden from then on."""

        def presented(secret: Secret) -> tuple[bytes, bytes]:
            if secret not in self._presented:
                self._presented.append(secret)
            return present(secret)

        return presented

    def __call__(self, data: bytes) -> bytes:
        """Return *data* with the credentials hidden."""
        plain = [secret.reveal() for secret in self._presented]
        forms = {form for each in plain for form in (each, each.replace("/", "\\/"), quote(each, safe=""))}
        # The longest first: one may begin with another.
        for form in sorted(map(str.encode, forms), key=len, reverse=True):
            data = data.replace(form, b"*" * len(form))
        return data
