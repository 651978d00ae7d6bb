"""The supplier API behind the gate: 500 suppliers that can be read, changed and synchronised. Knows no token."""

import json
from dataclasses import asdict, dataclass
from http import HTTPStatus

from aiohttp import web

from sidecar.emulator.answers import error

SUPPLIERS = 500
DEFAULT_LIMIT = 20
MAX_LIMIT = 400
PREFIX = "/api/v1/"
_CHANGEABLE = frozenset({"name", "status"})


@dataclass(slots=True)
class Supplier:
    """One supplier; *syncs* counts how often it was synchronised."""

    id: int
    number: str
    name: str
    status: str = "active"
    revision: int = 1
    syncs: int = 0


def fresh_suppliers() -> dict[int, Supplier]:
    """Return the suppliers as they are at the start."""
    return {n: Supplier(id=n, number=f"SUP-{n:04d}", name=f"Supplier {n}") for n in range(1, SUPPLIERS + 1)}


async def serve(request: web.BaseRequest, suppliers: dict[int, Supplier]) -> web.StreamResponse:
    """Answer a request below `/api/v1/`; whoever calls has checked the token."""
    method = "GET" if request.method == "HEAD" else request.method
    match request.rel_url.raw_path.removeprefix(PREFIX).split("/"):
        case ["health"]:
            return web.json_response({"status": "ok"}) if method == "GET" else _method_refused("GET, HEAD")
        case ["suppliers"]:
            return _page(request, suppliers) if method == "GET" else _method_refused("GET, HEAD")
        case ["suppliers", number] if (supplier := _find(suppliers, number)) is not None:
            if method == "PUT":
                return await _change(request, supplier)
            return web.json_response(asdict(supplier)) if method == "GET" else _method_refused("GET, HEAD, PUT")
        case ["suppliers", number, "sync"] if (supplier := _find(suppliers, number)) is not None:
            if method not in {"POST", "PUT"}:
                return _method_refused("POST, PUT")
            # The whole body has to arrive before the work counts as done: a cut-off request changes nothing.
            await request.read()
            supplier.syncs += 1
            return web.json_response({"id": supplier.id, "status": "synced", "syncs": supplier.syncs})
        case _:
            return error(HTTPStatus.NOT_FOUND, "The requested resource does not exist.")


def _find(suppliers: dict[int, Supplier], number: str) -> Supplier | None:
    return suppliers.get(int(number)) if number.isascii() and number.isdigit() and len(number) <= len("500") else None


def _page(request: web.BaseRequest, suppliers: dict[int, Supplier]) -> web.Response:
    query = request.rel_url.query
    try:
        limit, offset = int(query.get("limit", DEFAULT_LIMIT)), int(query.get("offset", "0"))
    except ValueError:
        limit, offset = 0, 0
    if not 1 <= limit <= MAX_LIMIT or offset < 0:
        return error(HTTPStatus.BAD_REQUEST, f"limit must be 1 to {MAX_LIMIT} and offset 0 or more.")
    results = [asdict(supplier) for supplier in list(suppliers.values())[offset : offset + limit]]
    body = {"count": len(results), "total": len(suppliers), "limit": limit, "offset": offset, "results": results}
    return web.json_response(body)


async def _change(request: web.BaseRequest, supplier: Supplier) -> web.Response:
    try:
        changes = json.loads(await request.read())
    except ValueError:
        changes = None
    if not isinstance(changes, dict) or not all(isinstance(value, str) for value in changes.values()):
        return error(HTTPStatus.BAD_REQUEST, "The body must be a JSON object of strings.")
    if not _CHANGEABLE.issuperset(changes):
        return error(HTTPStatus.BAD_REQUEST, f"Only {', '.join(sorted(_CHANGEABLE))} can be changed.")
    for name, value in changes.items():
        setattr(supplier, name, value)
    supplier.revision += 1
    return web.json_response(asdict(supplier))


def _method_refused(allowed: str) -> web.Response:
    return error(HTTPStatus.METHOD_NOT_ALLOWED, "The method is not allowed here.", {"Allow": allowed})
