"""Pictures of masks, and a mask in attention."""

import subprocess
import sys

import torch

import tvm_flash
from tvm_flash.masks import EXAMPLES, causal, in_characters, visible_pairs
from tvm_flash.score.mask_examples import COMPOSED


def test_in_characters():
    assert in_characters(visible_pairs(causal(), 3)) == "██\n████\n██████"
    assert in_characters(visible_pairs(causal(), 4), width=2) == "░░\n██░░"
    assert in_characters(visible_pairs(causal(), 3, 2)) == "██\n████\n████"


def draw(*arguments):
    command = [sys.executable, "-m", "tvm_flash.masks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_mask_is_drawn(tmp_path):
    shown = draw("--seqlen", "16")
    assert shown.returncode == 0, shown.stderr
    assert all(f"{name}: " in shown.stdout for name in EXAMPLES | COMPOSED)
    saved = draw("causal", "bigbird", "--save", str(tmp_path / "masks.png"))
    assert saved.returncode == 0 and saved.stdout == f"wrote {tmp_path / 'masks.png'}\n"
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn():
    assert "Usage: python -m tvm_flash.masks" in draw("-h").stdout
    unknown = draw("casual")
    assert unknown.returncode == 2 and "no mask casual: there are causal" in unknown.stderr
    nowhere = draw("causal", "--save", "/nowhere/masks.png")
    assert nowhere.returncode == 2 and "Traceback" not in nowhere.stderr


def test_a_mask_of_several_in_attention():
    q, k, v = (torch.randn(1, 40, 2, 16) for _ in range(3))
    mask_mod = tvm_flash.masks.all_of(causal(), tvm_flash.masks.not_mask(EXAMPLES["document"](40)))
    out = tvm_flash.attention(q, k, v, mask_mod=mask_mod)
    seen = visible_pairs(mask_mod, 40)
    heads = (x.transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen)
    expected = torch.where(seen.any(1)[:, None], expected, 0.0).transpose(1, 2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
