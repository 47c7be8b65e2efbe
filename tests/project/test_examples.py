"""The examples run, shortened."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tvm_flash import PagedCache, feature_maps

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # a checkout that is not installed will do


def test_quickstart():
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "largest difference" in done.stdout


@pytest.fixture
def example(monkeypatch, capsys):
    """Runs an example as a script, in this process: importing torch and tvm takes seconds."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.sweep  # cases walk the same functions
def test_score_mods(example, tmp_path):
    text = example("score_mods.py", "--seqlen", "96", "--out", str(tmp_path))
    assert "relative_position" in text
    assert (tmp_path / "masks.png").stat().st_size > 1000


def test_masks_are_drawn_as_text_without_matplotlib(example, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "██" in example("score_mods.py", "--seqlen", "96", "--out", str(tmp_path))


@pytest.mark.sweep
def test_train_char_lm(example, tmp_path):
    text = example("train_char_lm.py", "--steps", "10", "--out", str(tmp_path))
    assert "largest difference at any step" in text
    assert (tmp_path / "train_char_lm.png").stat().st_size > 1000


def test_serving():
    """Tokens are those of each request alone, and no row but those of tokens is computed."""
    script = runpy.run_path(str(ROOT / "examples" / "serving.py"))
    torch.manual_seed(1)
    model, requests = script["Model"](), [script["Request"](40) for _ in range(40)]
    sizes = (script["PAGES"], script["PAGE_SIZE"], script["KV_HEADS"], script["HEAD_DIM"])
    cache = PagedCache(*sizes, num_layers=script["LAYERS"])
    counts = script["serve"](model, requests, cache)
    for request in requests:
        assert request.tokens == script["decode_alone"](model, request)
    # A prompt and each token but the last are computed once; the rest of a batch would be padding.
    assert counts["rows"] == sum(len(r.prompt) + r.wanted - 1 for r in requests)
    assert counts["padded"] > 2 * counts["rows"]
    # They came and went: at no time were all of them in the cache, and now none is.
    assert counts["pages"] < sum(request.pages for request in requests)
    assert cache.num_free_pages == script["PAGES"] and cache.sequences == ()


@pytest.fixture
def transformers():
    torch.manual_seed(3)
    return runpy.run_path(str(ROOT / "examples" / "sparse_transformers.py"))


def causal_dense(x, v, seen):
    """Float64 attention of x to its own directions, of pairs ``seen`` (B, H, S, S), causal."""
    q, v = (t.double().transpose(1, 2) for t in (x, v))
    keys = torch.nn.functional.normalize(q, dim=-1)
    mask = seen & torch.ones(seen.shape[-2:], dtype=torch.bool).tril()
    out = torch.nn.functional.scaled_dot_product_attention(q, keys, v, attn_mask=mask)
    return out.transpose(1, 2)


def test_routing_is_attention_within_clusters(transformers):
    x, v = (torch.randn(2, 100, 2, 16, requires_grad=True) for _ in range(2))
    centroids = transformers["spherical_k_means"](x, 5)
    directions = torch.nn.functional.normalize(x, dim=-1)
    nearest = torch.einsum("bshd,hcd->bhsc", directions, centroids).argmax(-1)
    expected = causal_dense(x, v, nearest[..., None] == nearest[..., None, :])
    out = transformers["routing"](x, v, centroids)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)
    dout = torch.randn(out.shape)
    exact = torch.autograd.grad(expected, (x, v), dout.double())
    for got, wanted in zip(torch.autograd.grad(out, (x, v), dout), exact, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_reformer_is_attention_to_all_that_its_rounds_see(transformers):
    x, v = (torch.randn(2, 96, 2, 16) for _ in range(2))
    torch.manual_seed(5)
    out = transformers["reformer"](x, v, buckets=6, chunk=8, rounds=3)
    torch.manual_seed(5)
    hashed = torch.einsum("bshd,rdc->rbhsc", x, torch.randn(3, 16, 3))
    bucket = torch.cat([hashed, -hashed], -1).argmax(-1)
    chunk = bucket.argsort(dim=-1, stable=True).argsort(-1) // 8
    before = chunk[..., None] - chunk[..., None, :]
    near = (before == 0) | (before == 1)
    seen = ((bucket[..., None] == bucket[..., None, :]) & near).any(0)
    torch.testing.assert_close(out.double(), causal_dense(x, v, seen), atol=2e-6, rtol=1e-5)


def test_linformer_and_the_table(transformers, example):
    q, k, v = (torch.randn(1, 40, 2, 16) for _ in range(3))
    mix_k, mix_v = (torch.randn(7, 40) for _ in range(2))
    out = transformers["linformer"](q, k, v, mix_k, mix_v)
    keys, values = ((mix @ x[0].flatten(1)).view(7, 2, 16) for mix, x in ((mix_k, k), (mix_v, v)))
    heads = (x.transpose(0, 1).double() for x in (q[0], keys, values))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(0, 1)
    torch.testing.assert_close(out[0].double(), expected, atol=1e-5, rtol=1e-5)
    assert "routing" in example("sparse_transformers.py", "--seqlen", "128")


def test_scatterbrain_is_exact_within_buckets_and_estimated_elsewhere():
    torch.manual_seed(4)
    script = runpy.run_path(str(ROOT / "examples" / "scatterbrain.py"))
    q, k, v = (torch.randn(2, 50, 2, 16) for _ in range(3))
    phi = feature_maps.positive_random_features(16, 32)
    axes = torch.randn(16, script["TOPICS"], generator=torch.Generator().manual_seed(1))
    hashes = (torch.cat([x @ axes, -(x @ axes)], -1).argmax(-1).transpose(1, 2) for x in (q, k))
    bucket_q, bucket_k = hashes
    is_near = bucket_q[..., None] == bucket_k[..., None, :]
    exact = torch.einsum("bihd,bjhd->bhij", q, k).mul(16**-0.5).exp()
    weights = torch.where(is_near, exact, torch.einsum("bihf,bjhf->bhij", phi(q), phi(k)))
    expected = torch.einsum("bhij,bjhd->bihd", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(script["scatterbrain"](q, k, v, phi), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.sweep
def test_scatterbrain_beside_others():
    script = runpy.run_path(str(ROOT / "examples" / "scatterbrain.py"))
    script["errors"].__globals__["FEATURES"] = (32,)
    found = script["errors"](128)
    assert set(found) == {"hashed alone", "Performer", "Scatterbrain"}
