"""A fault of ours, anywhere before a request is sent, is a 500 for the client and nothing for the upstream."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.events import Trouble
from sidecar.exchange.body import RequestBody
from sidecar.exchange.mask import Mask
from sidecar.policy import headers
from sidecar.policy.routing import Routes
from sidecar.proxy import flows, head, http1
from sidecar.tokens.broker import Broker
from tests.canary import canary
from tests.rig import Recorder, Rig, configuration, problem_of, raw, recorder, sidecar, status_of, token_server

Break = Callable[[pytest.MonkeyPatch], None]
HOOKS = ("client_connected", "requestheaders", "request")


def _boom(*_: object, **__: object) -> Any:
    raise RuntimeError(canary("boom"))


EVERYWHERE: dict[str, Break] = {
    "parser": lambda patch: patch.setattr(head, "parse_head", _boom),
    "reply": lambda patch: patch.setattr(http1, "Reply", _boom),
    "body": lambda patch: patch.setattr(RequestBody, "feed_end", _boom),
    "route": lambda patch: patch.setattr(Routes, "find", _boom),
    "strip": lambda patch: patch.setattr(headers, "outgoing", _boom),
    "target": lambda patch: patch.setattr(headers, "strip_target", _boom),
    "token": lambda patch: patch.setattr(Broker, "current", _boom),
    "keep": lambda patch: patch.setattr(RequestBody, "keep", _boom),
    "whole": lambda patch: patch.setattr(RequestBody, "whole", _boom),
}
ADDONS: dict[str, Break] = {
    "copy": lambda patch: patch.setattr(http1, "CopiedBody", _boom),
    "view": lambda patch: patch.setattr(flows, "_View", _boom),
    "flow": lambda patch: patch.setattr(flows.http, "HTTPFlow", _boom),
    "mask": lambda patch: patch.setattr(Mask, "__call__", _boom),
}
PLACES = {"direct": EVERYWHERE, "addons": EVERYWHERE | ADDONS}
BODIES = {
    "none": b"\r\n",
    "buffered": b"Content-Length: 4\r\n\r\nbody",
    "streamed": b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
}


@pytest.fixture
async def upstream() -> AsyncIterator[Recorder]:
    async with recorder() as record:
        yield record


@pytest.fixture
async def rig(both_modes: str, upstream: Recorder, tmp_path: Path) -> AsyncIterator[Rig]:
    del both_modes
    async with token_server() as issuer, sidecar(configuration(upstream.url, issuer.url, tmp_path)) as running:
        yield running


def _request(port: str, upstream: Recorder, body: bytes) -> bytes:
    target = b"/x" if port == "plm" else upstream.url.encode() + b"/x"
    return b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: CANARY-own\r\nConnection: close\r\n" % target + body


def _check_refused(answer: bytes, upstream: Recorder) -> None:
    assert status_of(answer) == 500
    assert problem_of(answer)["reason"] == "internal"
    assert b"CANARY" not in answer
    assert upstream.bytes_in == 0


@pytest.mark.parametrize("port", ["proxy", "plm"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    ("both_modes", "place"), [(mode, place) for mode in PLACES for place in PLACES[mode]], indirect=["both_modes"]
)
async def test_fault_before_sending_is_500_and_nothing_leaves(
    rig: Rig, upstream: Recorder, monkeypatch: pytest.MonkeyPatch, both_modes: str, place: str, body: str, port: str
) -> None:
    """Whatever raises in the parser, the flow or the exchange: 500 `internal`, 0 bytes upstream."""
    PLACES[both_modes][place](monkeypatch)

    answer = await raw(rig.port(port), _request(port, upstream, BODIES[body]))

    _check_refused(answer, upstream)
    troubles = [event.detail for event in rig.events if isinstance(event, Trouble)]
    assert any("RuntimeError" in detail for detail in troubles)
    assert not any("CANARY" in detail for detail in troubles)


@pytest.mark.parametrize("port", ["proxy", "plm"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("hook", HOOKS)
async def test_fault_in_a_hook_is_500_and_nothing_leaves(
    upstream: Recorder, tmp_path: Path, hook: str, body: str, port: str
) -> None:
    """A raising hook of mitmproxy does not let the request go on with what it held at that moment."""

    async def dispatch(started: Any) -> None:
        if started.name == hook:
            _boom()

    data = configuration(upstream.url, "http://127.0.0.1:9/token", tmp_path)
    async with token_server() as issuer:
        data["upstreams"]["plm"]["oauth2"]["token_url"] = issuer.url
        async with sidecar(data, dispatch=dispatch) as rig:
            answer = await raw(rig.port(port), _request(port, upstream, BODIES[body]))

    _check_refused(answer, upstream)


async def test_next_connection_is_served_again(rig: Rig, upstream: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault ends its own connection only."""
    with monkeypatch.context() as patch:
        EVERYWHERE["parser"](patch)
        await raw(rig.port(), _request("proxy", upstream, BODIES["none"]))

    answer = await raw(rig.port(), _request("proxy", upstream, BODIES["none"]))

    assert status_of(answer) == 200
