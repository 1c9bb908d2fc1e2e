"""The network of ``ditf-tiny``: a small FLUX transformer on patches of pixels, and the folder a checkpoint lives in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import DitfError, ModelError
from ..types import write_atomically

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["TEXT_WIDTH", "build", "flow_inputs", "flow_loss", "load_weights", "patch_of", "save_checkpoint"]

TEXT_WIDTH = 8
"""Width of the one text token, which is zero: the class wants one."""

_ROPE_AXES = {16: (4, 6, 6), 32: (8, 12, 12), 64: (16, 24, 24)}
_ZERO_AT_START = (".norm1.linear", ".norm1_context.linear", ".norm.linear", "norm_out.linear", "proj_out")


def build(
    width: int = 128,
    heads: int = 4,
    double_blocks: int = 2,
    single_blocks: int = 6,
    patch: int = 4,
    qk_norm: bool = True,
) -> FluxTransformer2DModel:
    """A network ready to train: every AdaLN and the output start at zero, which diffusers leaves to the caller.

    Raises:
        ModelError: a width that the heads do not divide into 16, 32 or 64 channels each.
    """
    from diffusers import FluxTransformer2DModel

    if width % heads or width // heads not in _ROPE_AXES:
        sizes = ", ".join(map(str, _ROPE_AXES))
        raise ModelError(f"width: got {width} with {heads} heads, expected a head size of {sizes}")
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=3 * patch * patch,
        num_layers=double_blocks,
        num_single_layers=single_blocks,
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=_ROPE_AXES[width // heads],
    )
    if not qk_norm:  # the class has no such option
        for layer in model.modules():
            for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
                if getattr(layer, norm, None) is not None:
                    setattr(layer, norm, nn.Identity())
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        if name.startswith("time_text_embed"):
            nn.init.normal_(layer.weight, std=0.02)
        elif f".{name}".endswith(_ZERO_AT_START) or name == "proj_out":
            nn.init.zeros_(layer.weight)
        else:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def flow_loss(model: FluxTransformer2DModel, pictures: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Flow matching: mean squared error of the predicted velocity, noise minus picture.

    Args:
        pictures, noise: (B, 3, H, W), pictures in [-1, 1].
        sigma: (B,) noise level in [0, 1].
    """
    patch = patch_of(model)
    velocity = model(**flow_inputs(pictures, noise, sigma, patch), return_dict=False)[0]
    return (velocity.float() - _patches(noise - pictures, patch)).square().mean()


def flow_inputs(pictures: Tensor, noise: Tensor, sigma: Tensor, patch: int) -> dict[str, Tensor]:
    """Arguments of the network's forward: pictures (B, 3, H, W), mixed with as much noise as sigma (B,) says."""
    batch, _, height, width = pictures.shape
    level = sigma[:, None, None, None]
    text = pictures.new_zeros(batch, 1, TEXT_WIDTH)
    return {
        "hidden_states": _patches(level * noise + (1 - level) * pictures, patch),
        "encoder_hidden_states": text,
        "pooled_projections": text[:, 0],
        "timestep": sigma,
        "img_ids": _positions(height // patch, width // patch).to(pictures.device),
        "txt_ids": torch.zeros(1, 3, device=pictures.device),
    }


def patch_of(model: FluxTransformer2DModel) -> int:
    """Side of a token in pixels."""
    return round((model.config["in_channels"] / 3) ** 0.5)


def save_checkpoint(model: FluxTransformer2DModel, folder: Path, card: Mapping[str, Any]) -> None:
    """Write the folder that ``from_pretrained`` of diffusers and of ditf read: float16 weights, configs and card.

    Raises:
        DitfError: weights that are not finite in float16.
        StoreError: the folder cannot be written.
    """
    from safetensors.torch import save

    weights = {name: value.detach().to("cpu", torch.float16) for name, value in model.state_dict().items()}
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise DitfError(f"{name}: not finite in float16; the checkpoint in {folder} was left as it was")
    files = {
        "config.json": model.to_json_string(),
        "ditf.json": json.dumps({"kind": "pixel", "patch": patch_of(model)}) + "\n",
        "card.json": json.dumps(card, indent=1) + "\n",
    }
    for name, text in files.items():
        write_atomically(folder / name, text.encode())
    write_atomically(folder / "model.safetensors", save(weights))


def load_weights(model: FluxTransformer2DModel, path: Path) -> None:
    """Weights of a checkpoint's folder, or of a safetensors file, into a model of the same shape.

    Raises:
        ModelError: no such file, or another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path / "model.safetensors" if path.is_dir() else path
    try:
        model.load_state_dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: cannot be read ({error}); give a folder written by ditf.tiny.train") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
        raise ModelError(f"{file}: weights of another shape ({reason}); build the network they belong to") from None


def _patches(pictures: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, H/p * W/p, C*p*p), channels first in a token, as FLUX packs latents."""
    return nn.functional.unfold(pictures, patch, stride=patch).mT


def _positions(height: int, width: int) -> Tensor:
    """(h*w, 3): 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
