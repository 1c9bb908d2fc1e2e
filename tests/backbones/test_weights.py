"""Models without memory for what a checkpoint holds."""

import pytest
import torch

from ditf.backbones.weights import empty
from tests.zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_an_empty_model_given_the_saved_tensors_is_the_model(name: str):
    sample = ZOO[name]()
    model = empty(type(sample.model), sample.model.config, torch.float32)

    model.load_state_dict(sample.model.state_dict(), assign=True)

    assert torch.equal(sample._replace(model=model.eval()).forward(), sample.forward())


def test_positions_that_the_checkpoint_holds_are_not_made():
    from diffusers import SD3Transformer2DModel

    config = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8, "pos_embed_max_size": 4}

    model = empty(SD3Transformer2DModel, config, torch.float32)

    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_positions_that_it_does_not_hold_are_made():
    from diffusers import DiTTransformer2DModel

    config = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8, "sample_size": 8}

    model = empty(DiTTransformer2DModel, config, torch.float32)

    assert not any(buffer.is_meta for buffer in model.buffers())
    assert all(parameter.is_meta for parameter in model.parameters())
