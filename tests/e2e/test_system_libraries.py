"""The systems' own client libraries, unmodified, over deaths of their sessions: under `exec`, and on reverse ports."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from sidecar.settings.shipped import preset_data
from tests.clients.packages import CLOUD_SDK, JSFORCE, modern_node, node_modules, program
from tests.stage import SCRIPTS, Stage, clean, quick, report, served, stage

LIBRARIES = {
    "pyodata": ("sap-odata", "{python} pyodata_sap.py"),
    "SAP Cloud SDK": ("sap-odata", "{node} cloud_sdk.cjs"),
    "simple-salesforce": ("salesforce", "{python} simple_salesforce_calls.py"),
    "jsforce": ("salesforce", "{node} jsforce_calls.cjs"),
    "zeep": ("salesforce", "{python} zeep_calls.py"),
    "SOAP::Lite": ("salesforce", "perl soap_lite.pl"),
    "requests-oauthlib": ("autodesk", "{python} requests_oauthlib_calls.py"),
}
EXEC, REVERSE = "`exec`", "reverse port"
WAYS = [
    ("pyodata", EXEC),
    ("pyodata", REVERSE),
    ("SAP Cloud SDK", REVERSE),  # its agents read no proxy variable
    ("simple-salesforce", EXEC),  # it speaks to https alone
    ("jsforce", EXEC),
    ("jsforce", REVERSE),
    ("zeep", EXEC),
    ("zeep", REVERSE),
    ("SOAP::Lite", EXEC),
    ("SOAP::Lite", REVERSE),
    ("requests-oauthlib", EXEC),  # it wants https, or a variable that says otherwise
]


def node_path() -> str:
    """Return the folders of the packages for Node."""
    packages = (("@sap-cloud-sdk/http-client", CLOUD_SDK), ("jsforce", JSFORCE))
    return ":".join(str(node_modules(name, version)) for name, version in packages)


def changes(name: str) -> dict[str, Any]:
    """Return what an operator would set for the library *name*."""
    if name == "simple-salesforce":
        return {"scripts_login_url": "https://login.salesforce.com"}
    return {}


def short_lived() -> dict[str, Any]:
    """Return Autodesk's recipe with tokens for scripts that soon end by the scripts' own clocks."""
    shims = list(preset_data("autodesk")["shim"])
    shims[0]["reply"]["json"]["expires_in"] = 1
    return {"recipe": {"extends": "autodesk", "shim": shims}}


async def run(at: Stage, name: str, way: str) -> tuple[dict[str, Any], bytes]:
    """Run the script of the library *name* in *way*; return what it reported, and all that it wrote."""
    words = {"{python}": sys.executable, "{node}": modern_node()}
    command = [words.get(word, word) for word in LIBRARIES[name][1].split()]
    environ = at.environ() | {"NODE_PATH": node_path()}

    async def script(*before: str, base: str) -> tuple[dict[str, Any], bytes]:
        process = await asyncio.create_subprocess_exec(
            *before, *command, base, "night", cwd=SCRIPTS / "libraries", env=environ, stdout=PIPE, stderr=PIPE
        )
        return await report(process)

    settings = quick(at.name) | (short_lived() if name == "requests-oauthlib" else {})
    if more := changes(name):
        secrets = {key: {"env": "OURS"} for key in at.system.secrets}
        settings["credential"] = at.system.credential | secrets | more
    if way == EXEC:
        at.configure(**settings)
        return await script(*at.exec(), base=at.base)
    file = at.configure(**settings, listen={"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"})
    data = json.loads(file.read_text())
    data["upstreams"]["plm"]["listen"] = "127.0.0.1:0"
    file.write_text(json.dumps(data))
    async with served(at, "one", file) as addresses:
        return await script(base=f"http://{addresses['plm']}")


@pytest.mark.parametrize(("name", "way"), WAYS)
async def test_a_library_outlives_the_deaths_of_its_sessions(tmp_path: Path, name: str, way: str) -> None:
    """No failure, each write once, a login for each death, and nothing of the script's own at the system."""
    if name == "SOAP::Lite":
        program("perl")
    async with stage(tmp_path, LIBRARIES[name][0], dies_after=[4, 9, 14]) as at:
        told, output = await run(at, name, way)
        assert told["failures"] == [], output
        counters = at.system.counters
        assert counters["deaths"] == 3
        assert counters["logins"] <= 4
        assert sum(" night-" in key for key in at.system.rows) == 12
        assert set(at.system.rows.values()) == {1}
        if name == "requests-oauthlib":
            assert told["fetched"] >= 2, "its own clock was to end a token"
        clean(at, output)
