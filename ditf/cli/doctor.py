"""``ditf doctor``: what is installed, what will run, and why."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from . import common

NAME = "doctor"
EXAMPLE = "Example:  ditf doctor --json"

_CORE = (
    "torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub", "numpy", "pillow",
)  # fmt: skip
_EXTRAS = {"plots": {"matplotlib": "matplotlib"}, "demo": {"matplotlib": "matplotlib", "scikit-image": "skimage"}}
_MEBI = 2**20


def command(json: common.Json = False, verbose: common.Verbose = False) -> None:
    """Say what is installed, what will run, and why.

    Versions, devices, the kernels' backend and the reason, the bundled model, the hub's cache, the extras.

    The exit code is 1 if something that ditf cannot do without is missing.
    """
    common.set_voice(verbose)
    report = examine()
    if json:
        common.print_json(report)
    else:
        _print(report)
    if report["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Everything ``ditf doctor`` knows, as plain JSON values; ``problems`` is empty where ditf works."""
    versions = {name: _version(name) for name in (*_CORE, "triton")}
    model = _bundled_model()
    problems = [f"{name} is not installed: pip install {name}" for name in _CORE if versions[name] is None]
    if not model["present"]:
        problems.append(f"the bundled model is missing from {model['folder']}: install ditf again")
    from .. import __version__

    return {
        "versions": {"ditf": __version__, "python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "devices": _devices(),
        "backend": _backend(),
        "bundled_model": model,
        "hub": _hub(),
        "extras": {name: _extra(name, modules) for name, modules in _EXTRAS.items()},
        "problems": problems,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    import torch

    cuda = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        cuda.append(
            {
                "device": f"cuda:{index}",
                "name": about.name,
                "memory_mb": about.total_memory // _MEBI,
                "capability": f"{about.major}.{about.minor}",
            }
        )
    mps = torch.backends.mps.is_available()
    return {
        "default": "cuda" if cuda else "mps" if mps else "cpu",
        "cuda": cuda,
        "cuda_build": torch.version.cuda,
        "mps": mps,
        "cpu": {"cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def _backend() -> dict[str, Any]:
    """What the kernels say of themselves; a broken Triton is part of the answer, not an end to it."""
    try:
        from ditf_kernels.backend import describe

        return {name: _plain(value) for name, value in describe().items()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _bundled_model() -> dict[str, Any]:
    folder = Path(__file__).parents[1] / "tiny"
    files = sorted(folder.glob("*.safetensors"))
    return {
        "present": bool(files),
        "folder": str(folder),
        "files": [file.name for file in files],
        "mb": round(sum(file.stat().st_size for file in files) / _MEBI, 1),
    }


def _hub() -> dict[str, Any]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    flags = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DIFFUSERS_OFFLINE")
    return {
        "cache": str(cache),
        "cache_exists": cache.is_dir(),
        "offline": bool(constants.HF_HUB_OFFLINE),
        "flags": {name: os.environ[name] for name in flags if name in os.environ},
    }


def _extra(name: str, modules: dict[str, str]) -> dict[str, Any]:
    missing = [package for package, module in modules.items() if importlib.util.find_spec(module) is None]
    return {"installed": not missing, "missing": missing, "install": f"pip install 'ditf[{name}]'"}


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return str(value)


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("versions", ", ".join(f"{n} {v or 'not installed'}" for n, v in report["versions"].items()))
    table.add_row("platform", report["platform"])
    devices = report["devices"]
    for one in devices["cuda"]:
        about = f"{one['name']}, {one['memory_mb'] / 1024:.1f} GiB, compute capability {one['capability']}"
        table.add_row(one["device"], about)
    if not devices["cuda"]:
        built = f"torch is built for CUDA {devices['cuda_build']}" if devices["cuda_build"] else "torch's CPU build"
        table.add_row("cuda", f"none ({built})")
    if devices["mps"]:
        table.add_row("mps", "available")
    table.add_row("cpu", f"{devices['cpu']['cores']} cores, torch uses {devices['cpu']['threads']} threads")
    table.add_row("default device", devices["default"])
    said = {name: value for name, value in report["backend"].items() if value not in (None, False)}
    for name in ("backend", "reason", *sorted(said.keys() - {"backend", "reason", "triton", "cuda", "device"})):
        if name in said:
            table.add_row(f"kernels: {name.replace('_', ' ')}", _words(said[name]))
    model = report["bundled_model"]
    found = f"{', '.join(model['files'])}, {model['mb']} MB" if model["present"] else "missing"
    table.add_row("bundled model", f"{found} in {model['folder']}")
    hub = report["hub"]
    flags = ", ".join(f"{name}={value}" for name, value in hub["flags"].items())
    cache = f"{hub['cache']}{'' if hub['cache_exists'] else ' (not there yet)'}"
    table.add_row("hub cache", f"{cache}; {'offline' if hub['offline'] else 'online'}{f' ({flags})' if flags else ''}")
    for name, extra in report["extras"].items():
        missing = f"{', '.join(extra['missing'])} not installed: {extra['install']}"
        table.add_row(f"extra: {name}", "installed" if extra["installed"] else missing)
    console = common.output_console()
    console.print(table)
    for problem in report["problems"]:
        common.errors_console().print(f"problem: {problem}", style="bold red", soft_wrap=True)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_words(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_words(inner) for inner in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
