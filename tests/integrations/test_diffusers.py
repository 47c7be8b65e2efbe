"""Tiny models of diffusers, whose native attention is torch's, on our kernels.

Needs diffusers (`pip install diffusers`).
"""

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from tvm_flash import sdpa  # noqa: E402
from tvm_flash.integrations import sdpa_kernels  # noqa: E402

pytestmark = pytest.mark.sweep


def unet():
    model = diffusers.UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=2,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=24,
    )  # fmt: skip
    given = {
        "sample": torch.randn(2, 4, 16, 16), "timestep": 3,
        "encoder_hidden_states": torch.randn(2, 7, 24),
    }  # fmt: skip
    return model, given


def flux():
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    given = {
        "hidden_states": torch.randn(1, 36, 4), "encoder_hidden_states": torch.randn(1, 7, 32),
        "pooled_projections": torch.randn(1, 32), "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(36, 3), "txt_ids": torch.zeros(7, 3),
    }  # fmt: skip
    return model, given


@pytest.mark.parametrize("make", [unet, flux])
def test_results_and_gradients_are_torchs(make, monkeypatch):
    torch.manual_seed(0)
    model, given = make()
    served, posed = [], sdpa_kernels._posed
    monkeypatch.setattr(
        sdpa_kernels, "_posed", lambda *call: served.append(posed(*call)) or served[-1]
    )

    def call():
        out = model(**given).sample
        learned = [x for x in model.parameters() if x.requires_grad]
        return out, *torch.autograd.grad(out.square().mean(), learned)

    wanted = call()
    with sdpa():
        got = call()
    assert served and all(x is not None for x in served)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
