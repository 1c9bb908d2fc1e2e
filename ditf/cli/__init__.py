"""The command ``ditf``. Nothing heavy is imported before a command runs: ``ditf --help`` answers at once.

Exit codes: 0 done, 1 failed, 2 not usable as asked (an option, argument or input), 130 interrupted.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from . import data, doctor, eval, extract, inspect, match, plan, propagate, sweep, track

__all__ = ["app", "main"]

app = typer.Typer(
    name="ditf",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for _module in (match, extract, inspect, sweep, propagate, track, plan, doctor):
    _paragraphs = (_module.command.__doc__ or "").split("\n\n")
    _help = "\n\n".join(" ".join(paragraph.split()) for paragraph in _paragraphs)
    app.command(_module.NAME, help=_help, epilog=_module.EXAMPLE)(_module.command)
app.add_typer(data.app, name=data.NAME)
app.add_typer(eval.app, name=eval.NAME)


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"ditf {__version__}")
        raise typer.Exit()


@app.callback()
def _ditf(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Dense features from diffusion transformers, and points of one picture found in another.

    Try it, offline and without a GPU: [bold]ditf match one.jpg other.jpg --out matches.png[/bold]
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's); returns its exit code.

    What goes wrong is one sentence on stderr; ``--verbose`` adds the traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name that the terminal cannot write is no failure
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(app(given, prog_name="ditf", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout left: nothing to say, and nowhere to say it
        sys.stdout = None  # type: ignore[assignment]
        return 1
    except Exception as error:
        sentence, code = _explained(error)
        if "--verbose" in given and not hasattr(error, "exit_code"):
            traceback.print_exc()
        if sentence:
            print(f"error: {sentence}", file=sys.stderr)
        return code


def _explained(error: Exception) -> tuple[str, int]:
    """One sentence and the exit code."""
    said, code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if said is not None and code is not None:  # typer's own: a wrong option or argument
        message = " ".join(said().split())  # empty after `ditf` alone, which has printed its help
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "ditf"
        return message and f"{message} (see {where} --help)", code
    from ..errors import DitfError, InputError

    if isinstance(error, DitfError):
        return " ".join(str(error).split()), 2 if isinstance(error, InputError) else 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({error}); try a smaller --size or --ensemble, or another --device", 1
    return f"{type(error).__name__}: {error}; this is not expected: --verbose shows where", 1
