"""What may look on while a credential is obtained: for those who ask why a login fails."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sidecar.policy.message import Fields


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a login and its answer, whole, with every secret in it.

    *where*: the key path of the step. *hidden*: values that it took from the answer, which are secrets too.
    *verdicts*: a sentence for each thing that was looked for in the answer; it shows no value.
    """

    where: str
    method: str
    url: str
    fields: Fields = field(repr=False)
    body: bytes = field(repr=False)
    status: int
    answer: Fields = field(repr=False)
    content: bytes = field(repr=False)
    hidden: tuple[str, ...] = field(default=(), repr=False)
    verdicts: tuple[str, ...] = ()


Watch = Callable[[Asked], None]
