"""What the attempts of one request brought, as far as its client may still be told of it."""

from sidecar.errors import Reason, Refusal, UpstreamFailure
from sidecar.exchange.answer import Answer
from sidecar.policy.attempt import Attempt
from sidecar.policy.breaker import FAILED
from sidecar.policy.decide import Past, Told, after

_NOTHING = Past()
_ENDED = "the upstream ended the session, and this request could not be sent again in a new one that lasts"


class Brought:
    """`last` is what the last attempt brought, `past` what those before leave to be told."""

    def __init__(self) -> None:
        self.past = _NOTHING
        self.last: Answer | UpstreamFailure | None = None
        self._kept: Answer | None = None

    @property
    def serves(self) -> bool | None:
        """Whether the upstream can serve, by what the last attempt brought; None: that says nothing of it."""
        if isinstance(self.last, Answer):
            return self.last.status not in FAILED
        # What is stale is the pool's affair, what is prohibited ours.
        return None if self.last is None or self.last.reused or self.last.prohibited else False

    def go_on(self, attempt: Attempt) -> None:
        """Make ready for another attempt after *attempt*: only an answer that may stand in for its failure is kept."""
        self.past = after(self.past, attempt)
        if isinstance(self.last, Answer):
            self._drop(self._kept)
            self._kept, self.last = self.last, None
        if self.past.answer is None:
            self._drop(self._kept)
            self._kept = None

    def tell(self, told: Told, refusal: Refusal | None) -> Answer:
        """Return the answer to pass on, or raise the Refusal that is told; nothing else stays open."""
        last, kept = self.last, self._kept
        if told is Told.THIS and isinstance(last, Answer):
            self._drop(kept)
            return last
        if told is Told.EARLIER and kept is not None:
            return kept
        self.close()
        if told is Told.REFUSAL and refusal is not None:
            raise refusal
        if told is Told.REFUSAL and isinstance(last, Answer):
            raise Refusal(Reason.TOKEN_UNAVAILABLE, _ENDED)
        if isinstance(last, UpstreamFailure):
            reason = Reason.UPSTREAM_TIMEOUT if last.timeout else Reason.UPSTREAM_UNREACHABLE
            raise Refusal(reason, str(last), unknown=told is Told.UNKNOWN) from last
        said = last.status if last else 0
        detail = f"no answer says that this request was applied, and it may have been; the last one was {said}"
        raise Refusal(Reason.UPSTREAM_UNREACHABLE, detail, unknown=True)

    def close(self) -> None:
        """Give up what is still held; twice does no harm."""
        self._drop(self._kept)
        self._drop(self.last)

    @staticmethod
    def _drop(held: Answer | UpstreamFailure | None) -> None:
        if isinstance(held, Answer):
            held.close()
