"""What an obtain may present to the issuer: a decision of what is known of the refresh tokens alone. Pure.

A refresh token of an issuer that revokes on reuse may be presented once. Who cannot know whether it was waits, tells,
or asks for a person (docs/decisions/0026).
"""

from dataclasses import replace

from sidecar.auth.grant import Anew
from sidecar.errors import CredentialRejected, IssuerUnavailable
from sidecar.secret import Secret
from sidecar.tokens.record import Presented, Record
from sidecar.tokens.sealed import Unreadable

_ANEW = "log in anew and set the new refresh_token"


class KeptBack(IssuerUnavailable):
    """A refresh token must not be used now; nobody need wait for it."""


class Stuck(CredentialRejected):
    """Nothing is left that may be presented: a person has to see to it."""

    def __init__(self, message: str) -> None:
        super().__init__("", f"{message}; {_ANEW}")


def check_known(unreadable: Unreadable | None, anew: Anew, *, unsaved: bool) -> None:
    """Raise KeptBack or Stuck while the store has something that may be newer than what we know.

    A session that nobody can read is nobody's: another one is begun in its place.
    """
    if anew is Anew.EVICTS:
        if unreadable is not None and unreadable.foreign:
            raise KeptBack(
                f"the store holds {unreadable.why}; a login would end the session in it, which is not known here"
            )
        return
    if unreadable is not None and unreadable.foreign:
        raise KeptBack(f"the store holds {unreadable.why}; the refresh token in it is not known here")
    if unreadable is not None:
        raise Stuck(f"the store has no record to go on with: {unreadable.why}")
    if unsaved:
        raise KeptBack("the newest refresh token is not stored yet")


def choose(record: Record, anew: Anew, owner: str, *, forced: bool, lasts: bool) -> tuple[Secret | None, Record]:
    """Return the refresh token to present, None for what is configured alone, and *record* with that noted.

    *owner*: this instance. *forced*: an operator insists. *lasts*: the token at hand does. Raises KeptBack and Stuck.
    """
    doubt, kept = record.presented, record.kept
    if anew is Anew.FREE and (kept is None or doubt is not None):
        return None, replace(record, kept=None, presented=None)
    if doubt is not None and not (doubt.lost or doubt.by == owner or forced or record.rotates is False):
        why = f"{doubt.by} presented the refresh token and was cut off before it could store the answer"
        if lasts:
            raise KeptBack(f"{why}: it is not presented again while the token lasts")
        raise Stuck(f"{why}: have auth-sidecar token renew present it once more, or, as it may be spent")
    if anew is Anew.EVICTS:
        return None, record
    if kept is None:
        if record.revoked:
            raise Stuck("an operator revoked the credential")
        if record.claimed and doubt is None:
            raise Stuck("the first refresh token was presented already, and no other is left")
        record = replace(record, claimed=True)
    return kept, replace(record, presented=Presented(by=owner))
