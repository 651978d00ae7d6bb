"""From the head of an upstream's answer to its last byte at the client."""

from sidecar.errors import Reason, UpstreamFailure
from sidecar.events import Emit, Trouble
from sidecar.exchange.answer import Answer
from sidecar.exchange.destination import Client
from sidecar.exchange.tally import Tally
from sidecar.policy.message import Fields, value_of
from sidecar.policy.rewriter import Rewriter


async def relay(
    answer: Answer,
    fields: Fields,
    client: Client,
    tally: Tally,
    emit: Emit,
    peer: str,
    rewriter: Rewriter | None = None,
) -> None:
    """Give *client* the answer with *fields* for its head; one that breaks off is cut off for it too.

    *peer* names the sender in the log, *rewriter* changes the body. Raises ClientGone when the client left.
    """
    tally.status, tally.begun = answer.status, True
    sized = value_of(fields, b"content-length") is not None
    data = answer.ready()
    end = answer.empty
    if rewriter is not None:
        data = rewriter.feed(data) + (rewriter.end() if end else b"")
    await client.start(answer.status, answer.reason, fields, chunked=not sized, data=data, end=end)
    if end:
        return
    try:
        while not answer.empty:
            data = await answer.read()
            if rewriter is not None:
                data = rewriter.feed(data)
            if data:
                await client.send(data)
    except UpstreamFailure as failure:
        tally.outcome = Reason.UPSTREAM_TIMEOUT if failure.timeout else Reason.UPSTREAM_UNREACHABLE
        emit(Trouble(where=peer, detail=str(failure)))
        await client.abort()
        return
    if rewriter is not None and (data := rewriter.end()):
        await client.send(data)
    await client.end()
