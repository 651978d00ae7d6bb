"""The command `auth-sidecar`: what went wrong is one line on standard error, and the exit code says which kind."""

import itertools
import signal
import sys
from typing import NoReturn

import typer

from sidecar import __version__
from sidecar.cli import check, demo, doctor, env, exec, explain, keys, learn, presets, run, token  # noqa: A004
from sidecar.errors import ConfigurationError, SidecarError

app = typer.Typer(
    name="auth-sidecar",
    help="An HTTP proxy that keeps the tokens of unmodified scripts fresh.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
# What follows the command is its own.
app.command("exec", context_settings={"allow_interspersed_args": False})(exec.execute)
app.command("learn", context_settings={"allow_interspersed_args": False})(learn.learn)
app.command("env")(env.env)
app.command("check")(check.check)
app.command("explain")(explain.explain)
app.command("doctor")(doctor.doctor)
app.command("presets")(presets.presets)
app.add_typer(token.app, name="token")
app.add_typer(keys.app, name="keys")
app.command("demo")(demo.demo)


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of a failure."),
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Keep the tokens of unmodified scripts fresh."""
    del debug, version


def main() -> NoReturn:
    """Run the command line; exit 0, 1 for a failed operation, 2 for bad usage or configuration."""
    # Process 1 of a container ignores a signal that it does not handle: also before it serves it should end.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    debug = "--debug" in itertools.takewhile(lambda argument: argument.startswith("-"), sys.argv[1:])
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False, prog_name="auth-sidecar")
    except typer.TyperException as error:
        code = _complain(f"{error.format_message()} See --help.", 2)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except SidecarError as error:
        if debug:
            raise
        code = _complain(str(error), 2 if isinstance(error, ConfigurationError) else 1)
    except Exception as error:
        if debug:
            raise
        code = _complain(f"a fault of the sidecar: {type(error).__name__}; --debug shows where", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int) -> int:
    print("auth-sidecar: " + " ".join(message.split()), file=sys.stderr)
    return code
