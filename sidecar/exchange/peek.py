"""Looking at an answer's body before it goes out; it goes out as it came."""

from sidecar.exchange.answer import Answer
from sidecar.policy.coding import decoded
from sidecar.policy.message import Fields, value_of


async def peek(answer: Answer, limit: int, seconds: float) -> bytes | None:
    """Return the whole body, decoded; waits *seconds* at most for it.

    None for one of more than *limit* bytes, coded or decoded, for one that did not come in time, is meant for a file
    (RFC 6266), broke off, or is in a coding that we cannot read.
    """
    fields = answer.fields
    if _for_a_file(fields):
        return None
    held = await answer.peek(limit + 1, seconds)
    if held is None or len(held) > limit:
        return None
    plain = decoded(held, fields, limit + 1)
    return None if plain is None or len(plain) > limit else plain


def _for_a_file(fields: Fields) -> bool:
    said = value_of(fields, b"content-disposition")
    return said is not None and said.partition(b";")[0].strip().lower() != b"inline"
