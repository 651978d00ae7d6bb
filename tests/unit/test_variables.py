"""Which variables a client gets, and which files they name."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.errors import SidecarError
from sidecar.run.exec.client_files import client_files
from sidecar.run.exec.no_proxy import entries, java_patterns, without_upstreams
from sidecar.run.exec.shells import render
from sidecar.run.exec.variables import CA_VARIABLES, Files, proxy_url, variables

PLM = ("plm.example.com", 443)
FILES = Files(bundle=Path("/s/ca/bundle.pem"), truststore=Path("/s/ca/t.p12"), wgetrc=Path("/s/w"), php=Path("/s/php"))
PROXY = "http://127.0.0.1:8080"


def _variables(
    environ: dict[str, str] | None = None, *, files: Files | None = FILES, upstream: tuple[str, int] = PLM
) -> dict[str, str | None]:
    return variables(PROXY, files, environ or {}, [upstream], {"plm": "http://127.0.0.1:8090"})


@pytest.mark.parametrize(
    ("entry", "host"),
    [
        ("*", "plm.example.com"),
        ("plm.example.com", "plm.example.com"),
        ("PLM.Example.com", "plm.example.com"),
        ("plm.example.com.", "plm.example.com"),
        (".plm.example.com", "plm.example.com"),
        ("example.com", "plm.example.com"),
        (".example.com", "plm.example.com"),
        (".example.com.", "plm.example.com"),
        ("*.example.com", "plm.example.com"),
        ("*example.com", "plm.example.com"),
        ("ample.com", "plm.example.com"),
        ("com", "plm.example.com"),
        ("plm.*.com", "plm.example.com"),
        ("plm*", "plm.example.com"),
        ("https://plm.example.com/", "plm.example.com"),
        ("plm.example.com:443", "plm.example.com"),
        ("plm.example.com:80", "plm.example.com"),
        (".example.com:443", "plm.example.com"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3:443", "10.1.2.3"),
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.1.2.99/24", "10.1.2.3"),
        ("10.1.*", "10.1.2.3"),
        ("10.1.", "10.1.2.3"),
        ("0.0.0.0/0", "10.1.2.3"),
        ("fd00::/8", "fd00::1"),
        ("fd00::1", "fd00::1"),
        ("[fd00::1]", "fd00::1"),
        ("[fd00::1]:443", "fd00::1"),
        ("FD00:0::1", "fd00::1"),
        ("<local>", "plm"),
        ("<local>", "localhost"),
        ("<local>", "127.0.0.1"),
        ("localhost", "localhost"),
        ("localhost", "127.0.0.1"),
        ("localhost", "::1"),
        ("localhost.", "127.0.0.1"),
        ("localhost:443", "127.0.0.1"),
        ("127.0.0.0/8", "localhost"),
        ("127.0.0.1", "127.0.0.2"),
        ("::1", "127.0.0.1"),
        ("[::1]", "localhost"),
        ("app.localhost", "127.0.0.1"),
    ],
)
def test_what_hides_an_upstream_in_any_client_goes(entry: str, host: str) -> None:
    """Each reading of some client counts: exact, suffix, glob, port, network, loopback by another name."""
    assert without_upstreams(["first.org", entry, "last.org"], [(host, 443)]) == ["first.org", "last.org"]


@pytest.mark.parametrize(
    ("entry", "host"),
    [
        ("other.example.com", "plm.example.com"),
        ("x.plm.example.com", "plm.example.com"),
        (".x.plm.example.com", "plm.example.com"),
        ("example.com.org", "plm.example.com"),
        ("plm", "plm.example.com"),
        ("plm.example.com:8443", "plm.example.com"),
        ("10.1.2.4", "10.1.2.3"),
        ("10.2.0.0/16", "10.1.2.3"),
        ("10.2.", "10.1.2.3"),
        ("10.1.2.3", "plm.example.com"),
        ("::/0", "10.1.2.3"),
        ("0.0.0.0/0", "fd00::1"),
        ("<local>", "plm.example.com"),
        ("<local>", "10.1.2.3"),
        ("localhost", "plm.example.com"),
        ("127.0.0.0/8", "10.1.2.3"),
        ("localhost:8080", "127.0.0.1"),
    ],
)
def test_what_hides_no_upstream_stays(entry: str, host: str) -> None:
    """The user's list is kept: hosts beside the upstream, below it, on another port, of another family."""
    assert without_upstreams([entry], [(host, 443)]) == [entry]


def test_a_port_of_its_own_is_the_only_one() -> None:
    """The default ports stand for an upstream only where its own is one of them."""
    given = ["plm.example.com:8443", "plm.example.com:443"]
    assert without_upstreams(given, [("plm.example.com", 8443)]) == ["plm.example.com:443"]


def test_every_upstream_counts() -> None:
    """The second upstream is not hidden either."""
    assert without_upstreams(["b.org", "c.org"], [("a.org", 443), ("b.org", 443)]) == ["c.org"]


def test_both_spellings_are_united_in_order() -> None:
    """Commas and blanks part entries; the lower-case variable comes first, and nothing twice in any case."""
    assert entries(["b.org, A.org", None, "", "a.ORG\tc.org,,"]) == ["b.org", "A.org", "c.org"]
    found = _variables({"NO_PROXY": "c.org", "no_proxy": "a.org, example.com"})
    assert found["no_proxy"] == found["NO_PROXY"] == "a.org,c.org"


@pytest.mark.parametrize("environ", [{}, {"NO_PROXY": "*"}, {"no_proxy": "", "NO_PROXY": "plm.example.com"}])
def test_an_empty_list_is_unset(environ: dict[str, str]) -> None:
    """An empty entry is the suffix of every host to a careless client, so that no variable is left empty."""
    found = _variables(environ)
    assert (found["no_proxy"], found["NO_PROXY"]) == (None, None)


@pytest.mark.parametrize(
    ("entry", "patterns"),
    [
        ("a.org", "a.org|*.a.org"),
        (".a.org", "*.a.org"),
        ("*.a.org", "*.a.org"),
        ("A.org.", "a.org|*.a.org"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.0.0/16", "10.1.*"),
        ("10.0.0.0/8", "10.*"),
        ("10.1.2.0/24", "10.1.2.*"),
        ("10.1.0.0/17", ""),
        ("0.0.0.0/0", ""),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("fd00::/8", ""),
        ("a.org:8443", ""),
        ("<local>", ""),
        ("*", ""),
    ],
)
def test_java_has_words_of_its_own(entry: str, patterns: str) -> None:
    """What Java cannot say is left out: those hosts pass through the sidecar instead."""
    assert java_patterns([entry]) == patterns


def test_java_hosts_are_each_said_once() -> None:
    """A domain and its dotted form say the same in part."""
    assert java_patterns(["a.org", ".a.org", "b.org"]) == "a.org|*.a.org|b.org|*.b.org"


def test_the_set_is_the_documented_one() -> None:
    """Nothing more and nothing less; ALL_PROXY and SSL_CERT_DIR stay the caller's."""
    bundle = str(FILES.bundle)
    java = (
        "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=8080 -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=8080"
        " -Dhttp.nonProxyHosts= -Dsun.net.http.retryPost=false -Djavax.net.ssl.trustStore=/s/ca/t.p12"
        " -Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=changeit"
    )
    assert _variables({"ALL_PROXY": "socks5://x", "SSL_CERT_DIR": "/d"}) == {
        "http_proxy": PROXY,
        "HTTP_PROXY": PROXY,
        "https_proxy": PROXY,
        "HTTPS_PROXY": PROXY,
        "no_proxy": None,
        "NO_PROXY": None,
        "NODE_USE_ENV_PROXY": "1",
        "PERL_LWP_ENV_PROXY": "1",
        "JAVA_TOOL_OPTIONS": java,
        "SSL_CERT_FILE": bundle,
        "REQUESTS_CA_BUNDLE": bundle,
        "CURL_CA_BUNDLE": bundle,
        "NODE_EXTRA_CA_CERTS": bundle,
        "GIT_SSL_CAINFO": bundle,
        "PIP_CERT": bundle,
        "AWS_CA_BUNDLE": bundle,
        "PERL_LWP_SSL_CA_FILE": bundle,
        "npm_config_cafile": bundle,
        "CARGO_HTTP_CAINFO": bundle,
        "DENO_CERT": bundle,
        "NIX_SSL_CERT_FILE": bundle,
        "BUNDLE_SSL_CA_CERT": bundle,
        "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": bundle,
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": bundle,
        "HEX_CACERTS_PATH": bundle,
        "SYSTEM_WGETRC": "/s/w",
        "PHP_INI_SCAN_DIR": ":/s/php",
        "AUTH_SIDECAR_URL_PLM": "http://127.0.0.1:8090",
    }


def test_without_files_no_client_gets_another_ca() -> None:
    """Proxy variables alone, when nothing is intercepted."""
    found = _variables(files=None)
    assert not {*CA_VARIABLES, "SYSTEM_WGETRC", "PHP_INI_SCAN_DIR"} & found.keys()
    assert "trustStore" not in str(found["JAVA_TOOL_OPTIONS"])


def test_values_of_the_caller_come_first_and_ours_once() -> None:
    """What Java and PHP were told stays; an `exec` in an `exec` adds nothing to it."""
    environ = {"JAVA_TOOL_OPTIONS": "-Xmx1g", "PHP_INI_SCAN_DIR": "/own"}
    once = _variables(environ)
    twice = _variables({name: value for name, value in (environ | once).items() if value is not None})

    assert str(once["JAVA_TOOL_OPTIONS"]).startswith("-Xmx1g -Dhttp.proxyHost=")
    assert once["PHP_INI_SCAN_DIR"] == "/own:/s/php"
    assert twice == once
    assert _variables({"PHP_INI_SCAN_DIR": "/x/s/php"})["PHP_INI_SCAN_DIR"] == "/x/s/php:/s/php"


@pytest.mark.parametrize(
    ("upstream", "hosts"), [(PLM, "a.org|*.a.org"), (("127.0.0.1", 80), ""), (("localhost", 80), ""), (("::1", 80), "")]
)
def test_java_is_told_no_host_when_an_upstream_is_loopback(upstream: tuple[str, int], hosts: str) -> None:
    """Java adds loopback to every list but the empty one."""
    options = shlex.split(str(_variables({"NO_PROXY": "a.org"}, upstream=upstream)["JAVA_TOOL_OPTIONS"]))
    assert f"-Dhttp.nonProxyHosts={hosts}" in options


@pytest.mark.skipif(shutil.which("java") is None, reason="needs java")
def test_java_reads_a_path_as_it_is(tmp_path: Path) -> None:
    """Blanks and quotes of a path survive the JVM's own parsing, and the list of hosts is empty, not the default."""
    store = tmp_path / 'it\'s a "dir"' / "t.p12"
    files = Files(bundle=FILES.bundle, truststore=store, wgetrc=FILES.wgetrc, php=FILES.php)
    options = str(_variables(files=files)["JAVA_TOOL_OPTIONS"])
    environ = {"PATH": os.environ["PATH"], "JAVA_TOOL_OPTIONS": options}

    shown = subprocess.run(
        ["java", "-XshowSettings:properties", "-version"], env=environ, capture_output=True, text=True, check=True
    ).stderr

    assert f"    javax.net.ssl.trustStore = {store}\n" in shown
    assert "    http.nonProxyHosts = \n" in shown
    assert "    https.proxyPort = 8080\n" in shown


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("10.1.1.1", "http://10.1.1.1:80"),
    ],
)
def test_a_wildcard_is_shown_as_loopback(host: str, expected: str) -> None:
    """A client cannot connect to every address."""
    assert proxy_url(host, 80) == expected


def test_a_login_survives_in_a_url() -> None:
    """Every character that a URL would read is encoded."""
    assert proxy_url("127.0.0.1", 80, "a b", "p:/@%?#") == "http://a%20b:p%3A%2F%40%25%3F%23@127.0.0.1:80"


def _pem(text: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    directory = tmp_path / "ca"
    directory.mkdir(0o700)
    (directory / "bundle.pem").write_text(_pem("PUBLIC") + _pem("OURS"))
    return directory


def _made(ca: Path) -> list[Path]:
    return sorted(ca.glob("exec-*"))


def test_without_a_bundle_there_are_no_files(tmp_path: Path) -> None:
    """A sidecar that intercepts nothing has no CA to trust."""
    assert client_files(tmp_path, {}) is None
    assert list(tmp_path.iterdir()) == []


def test_the_bundle_is_used_as_it_is_when_the_caller_has_none(ca: Path) -> None:
    """No copy is made, and the files beside it name it."""
    files = client_files(ca, {})

    assert files is not None
    assert files.bundle == ca / "bundle.pem"
    assert files.truststore == ca / "truststore.p12"
    assert files.wgetrc.read_text().endswith(f"\nca_certificate = {files.bundle}\n")
    assert (files.php / "auth-sidecar.ini").read_text() == (
        f"curl.cainfo = '{files.bundle}'\nopenssl.cafile = '{files.bundle}'\n"
    )
    assert [path.stat().st_mode & 0o777 for path in (files.wgetrc, files.wgetrc.parent, files.php)] == [
        0o600,
        0o700,
        0o700,
    ]


@pytest.mark.parametrize("name", [*CA_VARIABLES, "SSL_CERT_DIR"])
def test_certificates_of_the_caller_are_trusted_too(ca: Path, tmp_path: Path, name: str) -> None:
    """A company's root named for one client stays; never a key beside it, never a public root twice."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "company.pem").write_text("key: -----BEGIN PRIVATE KEY-----\nK\n" + _pem("COMPANY") + _pem("PUBLIC"))
    files = client_files(ca, {name: str(own if name == "SSL_CERT_DIR" else own / "company.pem")})

    assert files is not None
    assert files.bundle.read_text() == _pem("PUBLIC") + _pem("OURS") + _pem("COMPANY")
    assert files.bundle.parent == files.wgetrc.parent
    assert str(files.bundle) in files.wgetrc.read_text()
    assert str(files.bundle) in (files.php / "auth-sidecar.ini").read_text()


def test_every_named_file_counts(ca: Path, tmp_path: Path) -> None:
    """Two clients with two roots: both roots; a directory where a file is usual is read as well."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.pem").write_text(_pem(name))
    files = client_files(ca, {"REQUESTS_CA_BUNDLE": str(tmp_path / "one"), "PIP_CERT": str(tmp_path / "two/two.pem")})
    assert files is not None
    assert files.bundle.read_text().endswith(_pem("one") + _pem("two"))


def test_a_file_that_cannot_be_read_is_passed_over(ca: Path, tmp_path: Path) -> None:
    """Missing, empty, not a file: the sidecar's own bundle takes its place."""
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    places = {"PIP_CERT": "missing", "SSL_CERT_FILE": "empty", "CURL_CA_BUNDLE": "pipe", "SSL_CERT_DIR": "none"}
    files = client_files(ca, {name: str(tmp_path / place) for name, place in places.items()})
    assert files is not None
    assert files.bundle == ca / "bundle.pem"


def test_the_same_content_is_the_same_directory(ca: Path, tmp_path: Path) -> None:
    """A second run makes no second copy, nor does one inside the first; other content does."""
    company = tmp_path / "company.pem"
    company.write_text(_pem("COMPANY"))
    first = client_files(ca, {"PIP_CERT": str(company)})
    assert first is not None
    nested = {"PIP_CERT": str(first.bundle), "SYSTEM_WGETRC": str(first.wgetrc)}

    assert client_files(ca, {"PIP_CERT": str(company)}) == first
    assert client_files(ca, nested) == first
    assert len(_made(ca)) == 1
    assert client_files(ca, {}) != first
    assert len(_made(ca)) == 2
    assert [path for path in ca.iterdir() if path.name.startswith(".")] == []


def test_the_callers_wgetrc_is_kept(ca: Path, tmp_path: Path) -> None:
    """What the system's wgetrc says holds, before what we add."""
    own = tmp_path / "wgetrc"
    own.write_bytes(b"user_agent = \xe9\n")
    files = client_files(ca, {"SYSTEM_WGETRC": str(own)})
    assert files is not None
    assert files.wgetrc.read_bytes().startswith(b"user_agent = \xe9\n\n#")


def test_directories_do_not_pile_up(ca: Path, tmp_path: Path) -> None:
    """The sixteen last used stay, by use and not by age."""
    company = tmp_path / "company.pem"
    for number in range(18):
        company.write_text(_pem(f"C{number}"))
        files = client_files(ca, {"PIP_CERT": str(company)})
        assert files is not None
        if number == 0:
            first = files
        os.utime(files.bundle.parent, (number, number))
        assert (client_files(ca, {"PIP_CERT": str(first.bundle)})) == first
    assert len(_made(ca)) == 16
    assert first.bundle.exists()


def test_a_directory_that_cannot_be_written_is_told(ca: Path) -> None:
    """One line names the place and what is expected."""
    (ca / "bundle.pem").unlink()
    (ca / "bundle.pem").mkdir()
    with pytest.raises(SidecarError, match=r"ca: Is a directory; expected a directory this user can write"):
        client_files(ca, {})


@pytest.mark.skipif(shutil.which("php") is None, reason="needs php")
def test_php_reads_the_path_and_its_own_directories(tmp_path: Path) -> None:
    """The two settings hold the bundle's path whatever is in it, and the directories PHP was built with still count."""
    ca = tmp_path / 'it\'s $a "dir" \\ x'
    ca.mkdir()
    (ca / "bundle.pem").write_text(_pem("OURS"))
    files = client_files(ca, {})
    found = _variables(files=files)["PHP_INI_SCAN_DIR"]
    code = "echo ini_get('curl.cainfo'), \"\\n\", ini_get('openssl.cafile'), \"\\n\", extension_loaded('curl') ? 1 : 0;"

    def php(environ: dict[str, str]) -> list[str]:
        environ = {"PATH": os.environ["PATH"], **environ}
        return subprocess.run(
            ["php", "-r", code], env=environ, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    assert php({"PHP_INI_SCAN_DIR": str(found)}) == [str(ca / "bundle.pem")] * 2 + [php({})[-1]]


AWKWARD = {
    "PLAIN": "http://127.0.0.1:80",
    "BLANKS": " a  b ",
    "QUOTES": "it's \"so\" `id` $HOME $(id) \\ \\' !x %PATH% é",
    "LINES": "one\ntwo",
    "GONE": None,
}
SHOW = "import json, os; print(json.dumps({name: os.environ.get(name) for name in " + repr(list(AWKWARD)) + "}))"


@pytest.mark.parametrize(
    ("shell", "command"),
    [
        ("sh", ["sh", "-c", 'eval "$1"; exec python3 -c "$2"', "-"]),
        ("sh", ["bash", "-c", 'eval "$1"; exec python3 -c "$2"', "-"]),
        ("fish", ["fish", "--no-config", "-c", 'printf "%s" $argv[1] | source; exec python3 -c $argv[2]']),
    ],
    ids=["sh", "bash", "fish"],
)
def test_a_shell_reads_the_values_as_they_are(shell: str, command: list[str], tmp_path: Path) -> None:
    """Whatever a value holds, the shell that evaluates the lines passes it on unchanged, and unsets what is None."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    text = render(shell, AWKWARD, tmp_path)  # type: ignore[arg-type]
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GONE": "x", "HOME": str(tmp_path)}
    shown = subprocess.run([*command, text, SHOW], env=environ, capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout) == AWKWARD
    assert shown.stderr == ""


def test_powershell_quotes_are_doubled() -> None:
    """Its single quotes take everything as it is but a quote of any kind."""
    values = {"A": "it's $x `y \u2019z", "B": None}
    assert render("powershell", values, Path("/s")) == (
        "$env:A = 'it''s $x `y \u2019\u2019z'\nRemove-Item Env:B -ErrorAction SilentlyContinue\n"
    )


def test_docker_takes_bare_values() -> None:
    """An `--env-file` knows no quotes and cannot unset; comments say what else the container needs."""
    assert render("docker", {"A": "it's a $x", "B": None}, Path("/s t")) == (
        "# For docker run --network host --env-file FILE; mount the files at the same place:\n"
        "# --volume '/s t/ca:/s t/ca:ro'\n"
        "A=it's a $x\n"
    )
