"""Features of DINOv2 and DINOv3 are transformers' own hidden states and projections, without CLS and registers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ditf
from ditf import DinoExtractor, InputError, ModelError

COMMON = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
CONFIGS = {  # the learned positions of DINOv2 are those of a 4 x 4 grid: any other is interpolated
    "Dinov2": {"patch_size": 14, "image_size": 56, "mlp_ratio": 2},
    "Dinov2WithRegisters": {"patch_size": 14, "image_size": 56, "mlp_ratio": 2, "num_register_tokens": 3},
    "DINOv3ViT": {"patch_size": 16, "image_size": 64, "intermediate_size": 48, "num_register_tokens": 4},
}
PREFIX = {"Dinov2": 1, "Dinov2WithRegisters": 4, "DINOv3ViT": 5}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    import transformers

    torch.manual_seed(0)
    made = {}
    for name, values in CONFIGS.items():
        config = getattr(transformers, f"{name}Config")(**COMMON, **values)
        made[name] = getattr(transformers, f"{name}Model")(config).eval()
        with torch.no_grad():  # the initial layer scales and biases would hide what a block does
            for parameter in made[name].parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, model in models.items():
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
        about = {"image_mean": MEAN, "image_std": STD, "image_processor_type": "BitImageProcessor"}
        (made[name] / "preprocessor_config.json").write_text(json.dumps(about))
    return made


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def pixels_of(image: Image.Image, size: tuple[int, int], mean=MEAN, std=STD) -> Tensor:
    """(1, 3, H, W): resized to (H, W) and normalised, by hand."""
    array = np.asarray(image.resize(size[::-1], Image.Resampling.LANCZOS), dtype=np.float64) / 255
    return torch.from_numpy((array - mean) / std).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_tokens_are_the_hidden_states_after_the_layer(models, folders, name, layer) -> None:
    patch = CONFIGS[name]["patch_size"]
    features = DinoExtractor.from_pretrained(folders[name], layer=layer, size=7 * patch, device="cpu")(picture(99, 70))
    assert (features.grid, features.image_size, features.block) == ((5, 7), (70, 99), layer)
    with torch.no_grad():
        output = models[name](pixels_of(picture(99, 70), (5 * patch, 7 * patch)), output_hidden_states=True)
    expected = output.hidden_states[layer + 1][0, PREFIX[name] :]
    torch.testing.assert_close(features.tokens, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("facet", ["key", "query", "value"])
def test_facets_are_what_the_attention_projects(models, folders, name, facet) -> None:
    patch, seen = CONFIGS[name]["patch_size"], []
    blocks = next(m for m in models[name].modules() if isinstance(m, nn.ModuleList))
    projection = getattr(blocks[2].attention, f"{facet[0]}_proj")
    handle = projection.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        models[name](pixels_of(picture(99, 70), (5 * patch, 7 * patch)))
    handle.remove()
    extractor = DinoExtractor.from_pretrained(folders[name], layer=2, facet=facet, size=7 * patch, device="cpu")
    expected = seen[0][0, PREFIX[name] :]
    torch.testing.assert_close(extractor(picture(99, 70)).tokens, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loaded_model_gives_the_same_and_is_left_as_it_was(models, folders, name) -> None:
    patch = CONFIGS[name]["patch_size"]
    own = DinoExtractor(models[name], layer=1, size=6 * patch, mean=MEAN, std=STD)
    read = DinoExtractor.from_pretrained(folders[name], layer=1, size=6 * patch, device="cpu")
    assert torch.equal(own(picture(60, 60)).tokens, read(picture(60, 60)).tokens)
    blocks = next(m for m in models[name].modules() if isinstance(m, nn.ModuleList))
    assert len(blocks) == 4
    with torch.no_grad():  # its whole forward still runs
        states = models[name](pixels_of(picture(60, 60), (56, 56)), output_hidden_states=True).hidden_states
    assert len(states) == 5


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_after_the_layer_are_not_kept(folders, name) -> None:
    extractor = DinoExtractor.from_pretrained(folders[name], layer=1, device="cpu")
    assert len(next(m for m in extractor.model.modules() if isinstance(m, nn.ModuleList))) == 2


def test_an_image_of_any_size_becomes_whole_patches(folders) -> None:
    extractor = DinoExtractor.from_pretrained(folders["Dinov2"], layer=0, size=100, device="cpu")
    assert extractor(picture(200, 130)).grid == (5, 7)  # 65 x 100 px: 70 x 98
    padded = DinoExtractor.from_pretrained(folders["Dinov2"], layer=0, size=70, resize="pad", device="cpu")
    features = padded(picture(200, 130))
    assert (features.grid, features.canvas, features.offset) == ((5, 5), (200, 200), (0, 35))


def test_images_of_one_size_share_a_forward_and_the_order_is_kept(folders) -> None:
    images = [picture(99, 70, 0), picture(50, 50, 1), picture(99, 70, 2), picture(99, 70, 3)]
    one = DinoExtractor.from_pretrained(folders["DINOv3ViT"], layer=2, size=96, device="cpu")
    many = DinoExtractor.from_pretrained(folders["DINOv3ViT"], layer=2, size=96, device="cpu", batch_images=2)
    shapes = []
    many.model.register_forward_pre_hook(
        lambda _m, _a, values: shapes.append(len(values["pixel_values"])), with_kwargs=True
    )
    for a, b in zip(one(images), many(images), strict=True):
        assert a.image_size == b.image_size
        torch.testing.assert_close(a.tokens, b.tokens, rtol=1e-5, atol=1e-5)
    assert sorted(shapes) == [1, 1, 2]


def test_features_match_and_say_where_they_come_from(folders) -> None:
    extractor = DinoExtractor.from_pretrained(folders["Dinov2"], layer=2, facet="key", size=140, device="cpu")
    source, target = extractor([picture(100, 80), picture(100, 80)])
    matches = ditf.match_points(source, target, [(30, 30), (61, 52)])
    assert torch.equal(matches.target, matches.source)
    config = json.loads(json.dumps(source.card))["config"]
    assert (config["layer"], config["facet"], config["multiple"]) == (2, "key", 14)
    assert config["mean"] == pytest.approx(MEAN)
    assert source.card["class"] == "Dinov2Model"


def test_they_stand_beside_features_of_a_diffusion_transformer(folders) -> None:
    images = [picture(96, 64, 0).resize((48, 32)), picture(96, 64, 1).resize((48, 32))]
    transformer = ditf.FeatureExtractor.from_pretrained("ditf-tiny", device="cpu", size=48, ensemble=1)(images)
    dino = DinoExtractor.from_pretrained(folders["DINOv3ViT"], layer=2, size=96, device="cpu")(images)
    joined = ditf.FeatureMap.concat(list(zip(transformer, dino, strict=True)), pca=10)
    assert [m.tokens.shape[1] for m in joined] == [10, 10]
    assert [m.grid for m in joined] == [m.grid for m in transformer]
    assert joined[0].card["concat"][1]["class"] == "DINOv3ViTModel"
    matches = ditf.match_points(joined[0], joined[0], [(20, 10)])
    assert torch.equal(matches.target, matches.source)


def test_half_precision_models_give_float32_features(models) -> None:
    extractor = DinoExtractor(models["Dinov2"], layer=1, size=56)
    full = extractor(picture(60, 60))
    try:
        half = DinoExtractor(models["Dinov2"], layer=1, size=56, dtype=torch.bfloat16)(picture(60, 60))
    finally:
        models["Dinov2"].to(torch.float32)
    assert half.tokens.dtype == torch.float32
    cosine = torch.cosine_similarity(half.tokens, full.tokens)
    assert 0.99 < float(cosine.min()) < 1 - 1e-7


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_missing_weights_are_an_error_never_random_numbers(folders, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(folders["Dinov2"], folder)
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "layer.1." in name and name.endswith("weight"))
    save_file({name: value for name, value in tensors.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="its files lack 1 weights"):
        DinoExtractor.from_pretrained(folder, layer=1, device="cpu")
    DinoExtractor.from_pretrained(folder, layer=0, device="cpu")  # the block after is not needed


def test_folders_and_ids_that_are_no_dino_are_refused(tmp_path, folders) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        DinoExtractor.from_pretrained("./nowhere")
    with pytest.raises(ModelError, match="no config.json inside; give a DINOv2 or DINOv3 folder"):
        DinoExtractor.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match="got model_type 'vit', expected one of dinov2, dinov2_with_registers, dinov3"):
        DinoExtractor.from_pretrained(tmp_path)
    shutil.copy(folders["Dinov2"] / "config.json", tmp_path / "config.json")
    with pytest.raises(ModelError, match="its files cannot be had"):
        DinoExtractor.from_pretrained(tmp_path, layer=1)
    with pytest.raises(ModelError, match="hub cannot be reached"):
        DinoExtractor.from_pretrained("facebook/no-such-dino", local_files_only=True)
    with pytest.raises(ModelError, match="Linear: no DINOv3ViTModel, Dinov2Model"):
        DinoExtractor(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 4}, r"layer: got 4, expected an index in 0\.\.3, the model's blocks"),
        ({"layer": -1}, "layer: got -1"),
        ({"facet": "head"}, 'facet: got \'head\', expected "token", "key", "query" or "value"'),
        ({"mean": [0.5]}, r"mean: got \[0.5\], expected three numbers"),
        ({"std": [1, 1, 0]}, "std: got .* above 0"),
        ({"size": 0}, "size: got 0"),
        ({"batch_images": 0}, "batch_images: got 0"),
    ],
)
def test_bad_options_name_the_argument(models, folders, options, message) -> None:
    for make in (lambda **o: DinoExtractor(models["Dinov2"], **o), lambda **o: from_folder(folders["Dinov2"], **o)):
        with pytest.raises(InputError, match=message):
            make(**{"layer": 0, **options})


def from_folder(folder: Path, **options) -> DinoExtractor:
    return DinoExtractor.from_pretrained(folder, device="cpu", **options)
