"""What may look on while a credential is obtained: for those who ask why a login fails."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sidecar.policy.message import Fields


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a login, as it may be shown, and its answer, whole, with every secret in it.

    *where*: the key path of the step. *line*, *body*: method and URL, and body, where names stand for what is secret.
    *names*: of the fields it had. *hidden*: values that were taken from the answer, which are secrets too. *verdicts*:
    a sentence for each thing that was looked for in the answer; it shows no value.
    """

    where: str
    line: str
    names: tuple[str, ...]
    body: str
    status: int
    answer: Fields = field(repr=False)
    content: bytes = field(repr=False)
    hidden: tuple[str, ...] = field(default=(), repr=False)
    verdicts: tuple[str, ...] = ()


Watch = Callable[[Asked], None]
