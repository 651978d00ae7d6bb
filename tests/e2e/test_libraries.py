"""Client libraries, unmodified, in each way of use, while their tokens are revoked again and again.

Each script has a credential of its own, keeps a session where its protocol has one, and follows the links it is given.
"""

import asyncio
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests import plm_upstream
from tests.clients.packages import SOAP, modern_node, node_modules, program
from tests.plm_upstream import PATH, Plm
from tests.process import start_sidecar
from tests.rig import TOKEN, configuration, token_server

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests/clients"
REWRITTEN = ["application/json", "application/xml", "text/xml"]
HTTPS, HTTP, REVERSE = "`exec`, `https://`", "`exec`, `http://`", "reverse port"
WHOLE = "reverse port of the whole host"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Library:
    """A script, and what it prints: {url} is the URL that it was given, {link} what a link in a body begins with.

    *ways*: those in which it works, with the arguments that it then gets.
    """

    command: str
    prints: str
    ways: dict[str, str]


EVERY_WAY = {HTTPS: "", HTTP: "", REVERSE: ""}
SOAP_PRINTS = """\
bolt 7 1 {link}/parts/7
bolt 8 2 {link}/parts/8
fault no such part
bolt 9 4 {link}/parts/9
"""
LIBRARIES = {
    "pyodata (OData 2)": Library(
        "{python} odata_calls.py",
        """\
page ['1', '2']
{paged}created 9 {url}/odata/Parts('9')
there gear
changed wheel
left 404
""",
        {HTTPS: "paged", HTTP: "", REVERSE: "paged"},
    ),
    "zeep (SOAP)": Library("{python} soap_calls.py", SOAP_PRINTS, EVERY_WAY),
    "Node 24 soap": Library("env NODE_PATH={soap} {modern_node} soap_calls.cjs", SOAP_PRINTS, EVERY_WAY),
    "PHP SoapClient": Library("{php} soap_calls.php", SOAP_PRINTS, {REVERSE: ""}),
    "webdav4 (WebDAV)": Library(
        "{python} webdav_calls.py",
        """\
drawings directory {link}/dav/drawings
moved.txt file {link}/dav/moved.txt
drawings/a b.txt file {link}/dav/drawings/a b.txt
False True 7
bolt M4
""",
        EVERY_WAY,
    ),
    "curl (WebDAV)": Library(
        "sh webdav.sh",
        """\
MKCOL 201
PUT 201
COPY 201
Location: {url}/dav/c.txt
MOVE 201
PUT 204
two
GET 200
<d:href>{link}/dav/
<d:href>{link}/dav/drawings
<d:href>{link}/dav/c.txt
DELETE 204
""",
        EVERY_WAY,
    ),
}
LIMITS = [
    ("pyodata (OData 2)", HTTP, "paged", "cross-origin __next URL rejected"),
    ("PHP SoapClient", HTTPS, "", "Parsing WSDL: Couldn't load from"),
    ("PHP SoapClient", HTTP, "", "Parsing WSDL: Couldn't load from"),
]
"""What a library does not do, by its own doing, with the arguments of its script and what it says then."""


@dataclass
class Stage:
    """The upstream and the sidecar that `exec` joins."""

    plm: Plm
    folder: Path
    reverse: str
    whole: str

    def url(self, way: str) -> str:
        """Return the base URL that scripts are given."""
        http = self.plm.url.replace("https", "http", 1)
        return {HTTPS: self.plm.url, HTTP: http, REVERSE: self.reverse, WHOLE: self.whole + PATH}[way]

    async def run(self, library: Library, way: str, arguments: str) -> tuple[int, str, str]:
        """Run the script of *library*; return code, output and error output."""
        tools: dict[str, Callable[[], object]] = {
            "python": lambda: sys.executable,
            "php": lambda: program("php"),
            "modern_node": modern_node,
            "soap": lambda: node_modules("soap", SOAP),
        }
        filled = re.sub(r"\{(\w+)\}", lambda match: str(tools[match[1]]()), library.command)
        command = [*filled.split(), self.url(way), *arguments.split()]
        if way in (HTTPS, HTTP):
            config = str(self.folder / "config.yaml")
            command = [sys.executable, "-m", "sidecar", "exec", "-c", config, "--", *command]
        self.plm.reset(short_hrefs=way == WHOLE)
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=SCRIPTS,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(ROOT)},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        async with asyncio.timeout(100):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, outputs: Path) -> AsyncIterator[Stage]:
    """Run the upstream and one sidecar for all tests here."""
    folder = tmp_path_factory.mktemp("libraries")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{SCRIPTS / 'names'}:{ROOT}")
        async with token_server() as tokens, plm_upstream.serving(tokens, folder / "ca.pem") as plm:
            data = configuration(
                plm.url,
                tokens.url,
                folder / "state",
                tls={"ca": str(folder / "ca.pem")},
                renew={"min_interval": 0},
                links={"rewrite": REWRITTEN},
            )
            whole = data["upstreams"]["plm"] | {"base_url": plm.url.removesuffix(PATH), "links": {}}
            data["upstreams"]["whole"] = whole | {"oauth2": whole["oauth2"] | {"client_id": "whole"}}
            async with start_sidecar(data, folder, outputs / "libraries.log") as running:
                yield Stage(plm, folder, *(f"http://127.0.0.1:{running.port(name)}" for name in ("plm", "whole")))


RUNS = [(name, way) for name, library in LIBRARIES.items() for way in library.ways]


def _links(stage: Stage, way: str) -> str:
    """Return what links in bodies begin with: in `exec` they stay as they are, also for http://."""
    return {REVERSE: stage.reverse, WHOLE: PATH}.get(way, stage.plm.url)


@pytest.mark.parametrize(("name", "way"), RUNS)
async def test_library_works_over_the_death_of_its_tokens(stage: Stage, name: str, way: str) -> None:
    """Every call succeeds, links lead on, sessions are kept, and the upstream is shown nothing but our tokens."""
    library = LIBRARIES[name]
    places = {
        "url": stage.url(way),
        "link": _links(stage, way),
        "paged": "page ['3']\n" if library.ways[way] else "",
    }

    code, out, err = await stage.run(library, way, library.ways[way])

    assert (out.replace("\r", ""), err, code) == (library.prints.format(**places), "", 0)
    assert stage.plm.deaths > 0
    assert stage.plm.refused == []
    assert [head for head in stage.plm.heads if b"stale" in head or f"Bearer {TOKEN}".encode() not in head] == []


async def test_paths_in_bodies_need_an_upstream_that_is_a_whole_host(stage: Stage) -> None:
    """Apache and many others write paths, not URLs, into what WebDAV lists; without a base path they are right."""
    library = LIBRARIES["webdav4 (WebDAV)"]

    code, out, err = await stage.run(library, WHOLE, "")

    assert (out, err, code) == (library.prints.format(link=PATH), "", 0)
    assert stage.plm.refused == []


@pytest.mark.parametrize(("name", "way", "arguments", "said"), LIMITS)
async def test_where_a_library_does_not_follow(stage: Stage, name: str, way: str, arguments: str, said: str) -> None:
    """It says so, and shows the upstream nothing that is not ours."""
    code, out, err = await stage.run(LIBRARIES[name], way, arguments)

    assert code != 0
    assert said in out + err
    assert stage.plm.refused == []
