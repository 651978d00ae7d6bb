"""`auth-sidecar doctor`."""

import json
import shutil
import sys
import textwrap
from dataclasses import asdict
from typing import Annotated

import typer

from sidecar.cli.options import ConfigOption, JsonOption, SetOption


def doctor(
    upstream: Annotated[str | None, typer.Argument(metavar="UPSTREAM", help="Default: all.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at everything live, a line each: PASS, WARN or FAIL, what was found, and the remedy; exit 1 for any FAIL.

    It shares the tokens of the store, as any sidecar would; no login is made that would end another one.

    Example: auth-sidecar doctor -c auth-sidecar.yaml plm
    """
    from sidecar.run.doctor.check import Verdict
    from sidecar.run.doctor.examine import diagnose

    checks = diagnose(config, overrides or (), upstream)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        for check in checks:
            where = f"{check.upstream} " if check.upstream else ""
            line = f"{check.verdict}  {where}{check.name}: {check.what}" + (f"; {check.remedy}" if check.remedy else "")
            print(textwrap.fill(line, width, subsequent_indent="      ", break_on_hyphens=False) if width else line)
    if any(check.verdict is Verdict.FAIL for check in checks):
        raise typer.Exit(1)
