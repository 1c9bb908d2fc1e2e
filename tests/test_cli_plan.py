"""``ditf plan`` as a user runs it: in a process of its own, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditf.cli import main
from ditf.cli.plan import _parsed, _size
from ditf.errors import InputError

from .test_cli import _quiet_logs  # noqa: F401 (puts logging and warnings back)


def ditf(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "COLUMNS": "140"}
    return subprocess.run(
        [sys.executable, "-m", "ditf", *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


def test_flux_is_planned_with_no_network_and_no_files(tmp_path: Path):
    options = ("--image", "1024x768", "--ensemble", "8", "--local-files-only", "--gpu", "h100")
    done = ditf("plan", "black-forest-labs/FLUX.1-dev", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in (
        "block 28 of 57",
        "picture 1024 x 768 (width x height), seen as 640 x 480: 40 x 30 tokens and 512 of text, ensemble of 8",
        "configs from ditf's own copy",
        "11,901,408,320",
        "15.84 GB",
        "NVIDIA H100 SXM: peak 17.44 GB fits 80.00 GB",
        "lower bounds by the data sheet",
        "nothing was measured",
    ):
        assert said in done.stdout
    assert "rror" not in done.stderr


def test_json_is_one_document(capsys):
    assert main(["plan", "ditf-tiny", "--image", "300x200", "--size", "64", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["image_size"] == [200, 300]  # (H, W), as everywhere in ditf
    assert plan["model_size"] == [44, 64]
    assert plan["grid"] == [11, 16]
    assert plan["configs_from"] == "the bundled model"
    assert plan["parts"][0]["files"] == ["model.safetensors"]
    assert plan["stages"][-1]["peak_bytes"] == plan["peak_bytes"] > 0
    assert plan["fit"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ditf-tiny", "--gpu", "voodoo"], 2, "gpu: got 'voodoo', expected one of h200, h100, a100"),
        (["ditf-tiny", "--image", "1024"], 2, "--image: got '1024', expected WIDTHxHEIGHT in pixels, such as 1024x768"),
        (["ditf-tiny", "--image", "0x5"], 2, "--image: got '0x5'"),
        (["ditf-tiny", "--block", "8"], 2, "block: got 8, expected an index in 0..7 of ditf-tiny"),
        (["nobody/nothing", "--local-files-only"], 1, "ditf knows the configs of black-forest-labs/FLUX.1-dev"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(arguments: list[str], code: int, said: str, capsys):
    assert main(["plan", *arguments]) == code
    assert said in capsys.readouterr().err


def test_sizes_are_width_first_and_in_decimal_units():
    assert _parsed(" 1024X768 ") == (1024, 768)
    with pytest.raises(InputError, match="expected WIDTHxHEIGHT"):
        _parsed("1024,768")
    assert [_size(count) for count in (0, 999, 1500, 2_340_000, 23_802_816_640)] == [
        "0 B", "999 B", "1.5 kB", "2.3 MB", "23.80 GB",
    ]  # fmt: skip
