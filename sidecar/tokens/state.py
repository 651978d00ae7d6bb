"""Where a credential stands, put together from its parts."""

from sidecar.tokens.holding import Holding
from sidecar.tokens.protocols import BrokerStatus
from sidecar.tokens.renewal import Renewing
from sidecar.tokens.verdicts import Verdicts


def status_of(holding: Holding, renewing: Renewing, verdicts: Verdicts) -> BrokerStatus:
    """Return where the credential stands; starts nothing."""
    token, usable = holding.token, holding.usable() is not None
    return BrokerStatus(
        state="rejected" if renewing.rejected else holding.state(),
        usable=usable,
        attempted=renewing.last is not None or usable,
        expires_at=token.expires_at if token else None,
        lifetime=token.lifetime if token else None,
        generation=holding.generation,
        by=token.by if token else None,
        last=renewing.last,
        forced_renewals="stopped" if verdicts.stopped else "allowed",
    )
