"""Files that clients read: a PEM bundle, a wgetrc and a php.ini, made from the sidecar's and the caller's own.

`exec-<hash of the content>` in the CA directory: the same content is the same directory, so that many runs share it.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from sidecar.errors import SidecarError
from sidecar.run.exec.variables import CA_VARIABLES, Files

_KEPT = 16
"""How many such directories stay; the one that was longest not used goes."""
_MAX_FILE = 4 << 20
_MAX_DIRECTORY = 2000
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_OURS = "\n# What follows is of auth-sidecar.\n"
_SYSTEM_WGETRC = (Path("/etc/wgetrc"), Path("/usr/local/etc/wgetrc"), Path("/opt/homebrew/etc/wgetrc"))


def client_files(ca_directory: Path, environ: Mapping[str, str]) -> Files | None:
    """Return the files for a client that would start with *environ*; None without a bundle in *ca_directory*.

    Certificates that the caller named for some client are trusted by all of them. A file of the caller's that is
    missing or cannot be read is passed over: the sidecar's own takes its place. Concurrent calls do no harm.
    Raises SidecarError when the directory cannot be written.
    """
    bundle = ca_directory / "bundle.pem"
    if not bundle.exists():
        return None
    try:
        own = bundle.read_text("latin-1")
        more = _caller_certificates(environ, set(_certificates(own)))
        content = {"wgetrc": _wgetrc(environ)}
        if more:
            content["bundle.pem"] = "\n".join([own.rstrip("\n"), *more, ""])
        directory = ca_directory / f"exec-{_short_hash(content, ca_directory)}"
        used = directory / "bundle.pem" if more else bundle
        content["wgetrc"] += f"{_OURS}ca_certificate = {_shown(used)}\n"
        content["php/auth-sidecar.ini"] = "".join(
            f"{key} = {_php(used)}\n" for key in ("curl.cainfo", "openssl.cafile")
        )
        _write(directory, content)
        _tidy(ca_directory)
    except OSError as error:
        raise SidecarError(f"{ca_directory}: {error.strerror}; expected a directory this user can write") from None
    return Files(
        bundle=used, truststore=ca_directory / "truststore.p12", wgetrc=directory / "wgetrc", php=directory / "php"
    )


def _caller_certificates(environ: Mapping[str, str], known: set[str]) -> list[str]:
    """Return the certificates that variables of the caller name and *known* lacks; never a key beside them."""
    places = [environ.get(name, "") for name in CA_VARIABLES] + environ.get("SSL_CERT_DIR", "").split(os.pathsep)
    found: dict[str, None] = {}
    for place in dict.fromkeys(filter(None, places)):
        for path in _files(Path(place)):
            found.update(dict.fromkeys(_certificates(_text(path))))
    return [certificate for certificate in found if certificate not in known]


def _files(path: Path) -> list[Path]:
    """Return *path*, or what is in it: some clients take a directory too."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            return sorted(path.iterdir())[:_MAX_DIRECTORY]
    return [path]


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as stream:
                return stream.read(_MAX_FILE).decode("latin-1")
    return ""


def _certificates(text: str) -> Iterator[str]:
    for match in _CERTIFICATE.finditer(text):
        yield "\n".join(line.strip() for line in match[0].splitlines())


def _wgetrc(environ: Mapping[str, str]) -> str:
    """Return the wgetrc that would hold without us: ours replaces it, the user's own is read after both."""
    named = environ.get("SYSTEM_WGETRC")
    for path in [Path(named)] if named else _SYSTEM_WGETRC:
        if text := _text(path):
            return text.partition(_OURS)[0]
    return ""


def _shown(path: Path) -> str:
    """Return the bytes of *path* as the text they are in a file that is written as Latin-1."""
    return os.fsencode(path).decode("latin-1")


def _php(path: Path) -> str:
    text = _shown(path)
    return f"'{text}'" if "'" not in text else '"' + re.sub(r'(["\\$])', r"\\\1", text) + '"'


def _short_hash(content: Mapping[str, str], directory: Path) -> str:
    data = "\0".join([str(directory), *(part for item in sorted(content.items()) for part in item)])
    return hashlib.sha256(data.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _write(directory: Path, content: Mapping[str, str]) -> None:
    """Make *directory* with *content*, whole or not at all; mark it as used when it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(directory)
        return
    partial = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    try:
        for name, text in content.items():
            path = partial / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="latin-1") as stream:
                stream.write(text)
        partial.rename(directory)
    except OSError:
        # Another run may have made the same one since.
        if not directory.exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tidy(ca_directory: Path) -> None:
    made = []
    for path in ca_directory.glob("exec-*"):
        with contextlib.suppress(FileNotFoundError):  # another run tidies as well
            made.append((path.stat().st_mtime, path))
    for _, path in sorted(made, reverse=True)[_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
