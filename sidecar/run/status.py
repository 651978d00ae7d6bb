"""What `/status`, `/readyz` and `token show` say, from what the brokers know; never a secret."""

from collections.abc import Mapping, Sequence
from typing import Any

from sidecar.settings import Upstream
from sidecar.tokens.broker import Broker


def upstream_status(pool: Sequence[Broker]) -> dict[str, Any]:
    """Return one upstream's state as plain data; durations in seconds, times as seconds since the epoch.

    Of several sessions it is that of the first which can be used, with all of them in `sessions`.
    """
    shown = [_session_status(broker) for broker in pool]
    leading = next((each for each in shown if each["usable"]), shown[0])
    return leading if len(shown) == 1 else leading | {"sessions": shown}


def _session_status(broker: Broker) -> dict[str, Any]:
    state = broker.status()
    token, last = state.token, state.last
    return {
        "state": state.state,
        "usable": state.usable,
        "generation": state.generation,
        "renewed_by": token.by if token else None,
        "forced_renewals": state.forced_renewals,
        "expires_at": state.expires_at,
        "expires_in": None if state.expires_in is None else round(state.expires_in, 3),
        "lifetime": state.lifetime,
        "scope": {"granted": token.scope, "missing": token.missing or None} if token else None,
        "sealed_with": {"key": state.sealed_with[0], "id": state.sealed_with[1]} if state.sealed_with else None,
        "last_renewal": None
        if last is None
        else {
            "at": last.time,
            "trigger": last.trigger,
            "result": last.result,
            "seconds": round(last.seconds, 3),
            "detail": last.detail,
        },
    }


def status(
    pools: Mapping[str, Sequence[Broker]],
    addresses: Mapping[str, str],
    version: str,
    breakers: Mapping[str, str] | None = None,
    quotas: Mapping[str, tuple[float | None, float | None]] | None = None,
) -> dict[str, Any]:
    """Return the whole status as plain data.

    *breakers*: the states of those that ever opened, None: of no interest. *quotas*: what is left of an allowance, and
    the end of one that is used up, wall time; None for what is not known.
    """
    upstreams = {name: upstream_status(pool) for name, pool in pools.items()}
    if breakers is not None:
        for name, each in upstreams.items():
            each["breaker"] = breakers.get(name, "closed")
    for name, (remaining, until) in (quotas or {}).items():
        if name in upstreams:
            upstreams[name]["quota"] = {"remaining": remaining, "exhausted_until": until}
    return {"version": version, "addresses": dict(addresses), "upstreams": upstreams}


def problems(upstreams: Mapping[str, Upstream], pools: Mapping[str, Sequence[Broker]]) -> dict[str, str]:
    """Return why the sidecar is not ready, by upstream.

    A required upstream is a problem until its first attempt has ended, and later only while it has no usable
    token or a rejected credential. Of several sessions one that can be used is enough.
    """
    found = {}
    for name, pool in pools.items():
        if upstreams[name].renew.startup != "required":
            continue
        states = [broker.status() for broker in pool]
        if any(state.usable and state.state != "rejected" for state in states):
            continue
        state = states[0]
        if not state.attempted and not state.usable:
            found[name] = "the first token has not been asked for yet"
        elif state.state == "rejected":
            found[name] = "the issuer refused the credential"
        elif not state.usable:
            found[name] = "no usable token"
    return found
