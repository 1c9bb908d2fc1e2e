"""What a plain `import ditf` costs and drags in, and what it offers."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

import ditf

ROOT = Path(__file__).parents[1]

HEAVY = ("gradio", "ray", "matplotlib", "cv2", "triton", "transformers", "diffusers")


def test_import_is_light() -> None:
    """Nothing but the standard library; every public name, PyTorch besides, which may itself know Triton."""
    code = f"""
        import sys
        import ditf

        print(*[name for name in ("torch", "numpy", *{HEAVY!r}) if name in sys.modules])
        import torch

        before = set(sys.modules)
        for name in ditf.__all__:
            getattr(ditf, name)
        print(*[name for name in {HEAVY!r} if name in sys.modules and name not in before])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "\n\n"


def test_every_public_name_exists_and_is_what_a_type_checker_takes_it_for() -> None:
    tree = ast.parse((ROOT / "ditf" / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in checked.body for alias in node.names}  # type: ignore[attr-defined]
    assert sorted(homes) == sorted(ditf.__all__)
    for name, home in homes.items():
        module = importlib.import_module(f"ditf.{home or name}")
        assert getattr(ditf, name) is (getattr(module, name) if home else module)
    assert set(ditf.__all__) <= set(dir(ditf))


def test_no_module_takes_the_place_of_a_public_name() -> None:
    """Importing ``ditf.name`` makes the module an attribute of the package."""
    named = {path.stem for path in (ROOT / "ditf").iterdir()}
    functions = {name for name in ditf.__all__ if not isinstance(getattr(ditf, name), ModuleType)}
    assert not named & functions


def test_modules_are_attributes_of_the_package_and_other_names_are_not() -> None:
    assert ditf.errors.InputError is ditf.InputError
    with pytest.raises(AttributeError, match="module 'ditf' has no attribute 'match_point'"):
        ditf.match_point  # noqa: B018
    assert not hasattr(ditf, "__main__")


def test_errors_share_one_base() -> None:
    for error in (ditf.InputError, ditf.ModelError, ditf.StoreError, ditf.VerificationError):
        assert issubclass(error, ditf.DitfError)
    assert issubclass(ditf.InputError, ValueError)


ROOMS = (  # arrows point down: a module imports from its own row or from rows further down
    "cli demo __main__",
    "benchmarks plan tiny sweep sweep_cases video",
    "extractor dense dino concat matching geometry exports massive massive_plots draw store",
    "backbones presets images warps calibration fusing fused_norm",
    "types errors",
)
LAYERS = [set(row.split()) for row in ROOMS]


def module_imports(path: Path) -> set[str]:
    """First-level modules of ditf that a file imports when it is imported itself (not inside functions)."""
    package = path.relative_to(ROOT / "ditf").parts[:-1]
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {(*above, *name.split("."))[0] for name in names}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "ditf").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_calls_back_into_an_earlier_one(path: Path) -> None:
    room = path.relative_to(ROOT / "ditf").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    row = next(i for i, rooms in enumerate(LAYERS) if room in rooms)
    allowed = set().union(*LAYERS[row:])
    assert module_imports(path) <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "ditf_kernels").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_kernels_know_tensors_only(path: Path) -> None:
    modules = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }  # fmt: skip
    foreign = modules - set(sys.stdlib_module_names) - {"torch"}
    assert foreign <= ({"triton"} if path.parent.name == "_triton" else set())


def test_the_first_python_block_of_the_readme_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block[1], "README.md", "exec"), names)
    assert len(names["matches"]) == 2
    assert (tmp_path / "matches.png").stat().st_size > 10_000
