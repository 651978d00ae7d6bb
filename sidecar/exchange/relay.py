"""From the head of an upstream's answer to its last byte at the client."""

from sidecar.errors import Reason, UpstreamFailure
from sidecar.events import Emit, Trouble
from sidecar.exchange.answer import Answer
from sidecar.exchange.ports import Client
from sidecar.exchange.tally import Tally
from sidecar.policy.message import Fields, value_of


async def relay(answer: Answer, fields: Fields, client: Client, tally: Tally, emit: Emit, peer: str) -> None:
    """Give *client* the answer with *fields* for its head; one that breaks off is cut off for it too.

    *peer* names the sender in the log. Raises ClientGone when the client left.
    """
    tally.status, tally.begun = answer.status, True
    sized = value_of(fields, b"content-length") is not None
    data = answer.ready()
    end = answer.empty
    await client.start(answer.status, answer.reason, fields, chunked=not sized, data=data, end=end)
    if end:
        return
    try:
        while not answer.empty:
            if data := await answer.read():
                await client.send(data)
    except UpstreamFailure as failure:
        tally.outcome = Reason.UPSTREAM_TIMEOUT if failure.timeout else Reason.UPSTREAM_UNREACHABLE
        emit(Trouble(where=peer, detail=str(failure)))
        await client.abort()
        return
    await client.end()
