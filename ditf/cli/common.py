"""What the commands share: the model's options, the two streams, the clock, the checks before the work."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ..extractor import FeatureExtractor

_MODEL = "Model"
FEATURES = "Features (default: what the model's preset says)"

Model = Annotated[str, typer.Option(help="Hub id, local folder, or the bundled ditf-tiny.", rich_help_panel=_MODEL)]
Task = Annotated[
    Literal["semantic", "temporal", "geometric"],
    typer.Option(help="Which preset of the model.", rich_help_panel=_MODEL),
]
Fused = Annotated[
    Literal["true", "false", "verify"],
    typer.Option(help="Triton kernels, their PyTorch twins, or both compared.", rich_help_panel=_MODEL),
]
Device = Annotated[
    str | None,
    typer.Option(help="cuda, cuda:1, mps or cpu.", show_default="the best there is", rich_help_panel=_MODEL),
]
Dtype = Annotated[
    Literal["bfloat16", "float16", "float32"] | None,
    typer.Option(show_default="bfloat16 on a GPU, float32 on a CPU", rich_help_panel=_MODEL),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=_MODEL)]
LocalFilesOnly = Annotated[
    bool, typer.Option("--local-files-only", help="Use only what is on this machine.", rich_help_panel=_MODEL)
]
Block = Annotated[
    int | None,
    typer.Option(help="Which block's input is the feature.", show_default=False, rich_help_panel=FEATURES),
]
Timestep = Annotated[
    float | None,
    typer.Option(help="Noise level, 0 (clean) to 1000.", show_default=False, rich_help_panel=FEATURES),
]
Ensemble = Annotated[
    int | None, typer.Option(help="How many noises are averaged.", show_default=False, rich_help_panel=FEATURES)
]
Discard = Annotated[
    str | None,
    typer.Option(
        metavar="preset|none|auto|3,5",
        help="Massive channels to zero.",
        show_default=False,
        rich_help_panel=FEATURES,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(help="Side the model sees, in pixels.", show_default=False, rich_help_panel=FEATURES),
]
Prompt = Annotated[
    str | None, typer.Option(help="Text given to the model.", show_default=False, rich_help_panel=FEATURES)
]
Seed = Annotated[int, typer.Option(help="Of the noise.", rich_help_panel=FEATURES)]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for programs.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Logs, the libraries' own messages, tracebacks.")]


@dataclass(frozen=True)
class ModelOptions:
    """Everything that decides which features come out; None leaves it to the preset."""

    model: str
    task: str
    fused: str
    device: str | None
    dtype: str | None
    revision: str | None
    local_files_only: bool
    block: int | None
    timestep: float | None
    ensemble: int | None
    discard: str | None
    size: int | None
    seed: int

    def overrides(self) -> dict[str, Any]:
        """Fields of ExtractConfig.

        Raises:
            InputError: a ``discard`` that is neither a word nor channels, a negative seed.
        """
        given = {"block": self.block, "timestep": self.timestep, "ensemble": self.ensemble, "size": self.size}
        given |= {"discard": None if self.discard is None else _discard(self.discard), "seed": self.seed}
        return {name: value for name, value in given.items() if value is not None}

    def load(self, verbose: bool) -> FeatureExtractor:
        """The extractor, its libraries quiet unless asked.

        Raises:
            InputError, ModelError: as ``FeatureExtractor.from_pretrained``.
        """
        import torch

        from ..extractor import FeatureExtractor

        overrides = self.overrides()
        if self.device is not None:
            _check_device(self.device)
        if not verbose:
            _quiet_loading_bars()
        return FeatureExtractor.from_pretrained(
            self.model,
            task=self.task,
            fused={"true": True, "false": False, "verify": "verify"}[self.fused],
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
            device=self.device,
            revision=self.revision,
            local_files_only=self.local_files_only,
            **overrides,
        )


@dataclass
class Clock:
    """Seconds per stage, in the order the stages were first entered."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 4)


def set_voice(verbose: bool) -> None:
    """Logs to stderr; without ``--verbose`` only ditf's warnings, and none of the libraries' chatter."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(name)s: %(message)s", force=True)
    if verbose:
        return
    for library in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(library, "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for library in ("diffusers", "transformers", "huggingface_hub", "accelerate", "torch", "PIL"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def errors_console() -> Console:
    """For people, on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def output_console() -> Console:
    """For results, on stdout; as wide as a log needs where no terminal says how wide it is."""
    from rich.console import Console

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, markup=False, width=120 if piped else None)


def print_json(document: dict[str, Any]) -> None:
    """The one document on stdout; plain ASCII, and never NaN."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def make_folder(folder: Path, option: str) -> None:
    """The folder is there and takes files; created if need be.

    Raises:
        InputError: a file stands in its place.
        StoreError: it cannot be created or written.
    """
    from ..errors import InputError, StoreError

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option}: {folder} is a file; give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{option}: {folder} cannot be created ({error.strerror}); choose another folder") from None
    check_writable(folder, option)


def check_writable(folder: Path, option: str) -> None:
    """Put a file there and take it away again.

    Raises:
        StoreError: the folder takes no files.
    """
    from ..errors import StoreError

    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".ditf-"):
            pass
    except OSError as error:
        raise StoreError(f"{option}: {folder} cannot be written to ({error.strerror}); choose another folder") from None


def _check_device(name: str) -> None:
    """Before anything is loaded.

    Raises:
        InputError: no name of a device, or one that torch does not see.
    """
    import torch

    from ..errors import InputError

    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and not index.isdecimal()):
        raise InputError(f"--device: got {name!r}, expected cuda, cuda:1, mps or cpu")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(index or 0) >= count:
        there = f"{count} {kind} device{'s' if count != 1 else ''}" if count else f"no {kind} device"
        raise InputError(f"--device: got {name!r}, but torch sees {there}; leave it out, or see ditf doctor")


def _discard(value: str) -> str | tuple[int, ...]:
    from ..errors import InputError

    if value in ("preset", "none", "auto"):
        return value
    try:
        return tuple(int(channel) for channel in value.split(","))
    except ValueError:
        raise InputError(
            f"--discard: got {value!r}, expected preset, none, auto or channel numbers such as 3,5"
        ) from None


def _quiet_loading_bars() -> None:
    """Bars over files already on disk; the hub's download bars stay, on stderr."""
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    with contextlib.suppress(ImportError):
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()


@contextlib.contextmanager
def steps(count: int | None) -> Iterator[Callable[[str], None]]:
    """A bar on stderr over ``count`` steps (None: unknown), gone when done; call what it gives at the start of each.

    Only on a terminal: a log or a pipe gets none of it.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = errors_console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=count)
        started = False

        def step(description: str) -> None:
            nonlocal started
            progress.update(task, description=description, advance=1 if started else 0)
            started = True

        yield step
