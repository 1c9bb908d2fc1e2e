"""The whole way from two images to matches, each kernel beside its twin: Triton's interpreter, grids of 24 tokens."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from PIL import Image

import ditf
from ditf_kernels._triton import adaln as adaln_kernels
from ditf_kernels.backend import verification_counts

pytestmark = pytest.mark.verify


def pictures() -> list[Image.Image]:
    coarse = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((48, 32), Image.Resampling.BICUBIC)
    return [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]


@pytest.fixture(scope="module")
def verifying() -> ditf.FeatureExtractor:
    return ditf.FeatureExtractor.from_pretrained(
        "ditf-tiny", fused="verify", device="cpu", size=24, ensemble=2, timestep=50
    )


def test_images_to_matches_agree_with_the_twins(verifying) -> None:
    before = verification_counts()
    source, target = verifying(pictures())
    assert source.grid == (4, 6)
    matches = ditf.match_points(source, target, [(5, 5), (40, 20)])
    after = verification_counts()
    assert after["adaln_with_inverse_norm"] == before.get("adaln_with_inverse_norm", 0) + 2  # one feature per picture
    assert after["upsampled_argmax"] > before.get("upsampled_argmax", 0)
    # in each forward, the blocks before the tapped one: two double blocks of four AdaLNs, single blocks of one
    assert after["adaln"] == before.get("adaln", 0) + 2 * (2 * 4 + verifying.config.block - 2)
    plain = copy.copy(verifying)
    plain.fused = False
    source, target = plain(pictures())
    assert source.backend == "torch"
    assert ditf.match_points(source, target, [(5, 5), (40, 20)]).target.tolist() == matches.target.tolist()


def test_a_fault_in_a_kernel_reaches_the_user_as_a_ditf_error(verifying, monkeypatch) -> None:
    right = adaln_kernels.adaln_with_inverse_norm

    def wrong(*args):
        features, inverse_norm = right(*args)
        return features + 0.01 * features.abs().max(), inverse_norm

    monkeypatch.setattr(adaln_kernels, "adaln_with_inverse_norm", wrong)
    with pytest.raises(ditf.VerificationError, match="adaln_with_inverse_norm"):
        verifying(pictures())
