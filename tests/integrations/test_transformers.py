"""Tiny models of transformers with random weights on our kernels, beside its own eager attention.

Needs transformers (`pip install -e .[transformers]`). `pytest -m sweep` runs all models but the
first.
"""

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.24")

from tvm_flash.integrations.transformers import register  # noqa: E402
from tvm_flash.integrations.transformers_masks import Seen, seen_keys  # noqa: E402

NAME = register()
SIZES = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=120
)  # fmt: skip
GROUPS = SIZES | dict(num_key_value_heads=2, head_dim=16)
LOCAL = GROUPS | dict(sliding_window=9)
GEMMA = LOCAL | dict(query_pre_attn_scalar=16)
MARKS = dict(vocab_size=120, pad_token_id=0, eos_token_id=1)
BOTH = dict(d_model=64, decoder_start_token_id=2, **MARKS)
LAYERS = dict(
    encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=96, decoder_ffn_dim=96, dropout=0.0, bos_token_id=2,
)  # fmt: skip
MODELS = {
    "Llama": ("ForCausalLM", GROUPS),
    "Mistral": ("ForCausalLM", LOCAL),
    "Gemma2": ("ForCausalLM", GEMMA),
    "Gemma3": ("ForCausalLM", GEMMA),
    "Qwen3": ("ForCausalLM", GROUPS),
    "GptOss": ("ForCausalLM", LOCAL | dict(num_local_experts=4, num_experts_per_tok=2)),
    "Bert": ("ForMaskedLM", SIZES),
    "ModernBert": (
        "ForMaskedLM",
        SIZES
        | dict(local_attention=8, pad_token_id=0, global_attn_every_n_layers=2)
        | dict.fromkeys(("eos_token_id", "sep_token_id", "cls_token_id", "bos_token_id"), 1),
    ),
    "T5": (
        "ForConditionalGeneration",
        BOTH | dict(d_kv=16, d_ff=96, num_layers=2, num_heads=4, dropout_rate=0.0),
    ),
    "Bart": ("ForConditionalGeneration", BOTH | LAYERS | dict(forced_eos_token_id=None)),
    "Whisper": (
        "ForConditionalGeneration",
        BOTH
        | LAYERS
        | dict(num_mel_bins=8, max_source_positions=30)
        | dict.fromkeys(("suppress_tokens", "begin_suppress_tokens")),
    ),
}
PACKED = ("Llama", "Mistral", "Gemma2", "Gemma3", "Qwen3")


def model_of(name):
    torch.manual_seed(0)
    kind, sizes = MODELS[name]
    config = {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config")
    config = getattr(transformers, config)(**sizes)
    model = getattr(transformers, name + kind)._from_config(config, attn_implementation="eager")
    return model.eval()


def inputs_of(name, case):
    """Arguments of a model, and which of its outputs are of tokens, not of padding."""
    torch.manual_seed(1)
    tokens = torch.randint(3, 120, (2, 37))
    if name == "Whisper":
        return dict(input_features=torch.randn(2, 8, 60), labels=tokens[:, :20]), slice(None)
    given = dict(input_ids=tokens, labels=tokens)
    if case == "packed":
        places = torch.cat([torch.arange(17), torch.arange(20)])[None].expand(2, -1)
        return given | dict(position_ids=places, use_cache=False), slice(None)
    if case == "plain":
        return given, slice(None)
    kept = torch.ones_like(tokens)
    kept[0, :7] = 0
    given["attention_mask"] = kept
    if name in ("T5", "Bart"):
        return given, slice(None)
    first = torch.roll(kept, 1, 1) * kept == 0  # a row of padding would say it
    return given | dict(labels=tokens.masked_fill(first, -100)), kept.bool()


def cases():
    for name in MODELS:
        for case in ("plain", "padded", "packed"):
            if case == "plain" or (name in PACKED if case == "packed" else name != "Whisper"):
                marks = () if name == "Llama" else pytest.mark.sweep
                yield pytest.param(name, case, marks=marks)


@pytest.mark.parametrize(("name", "case"), list(cases()))
def test_logits_loss_and_gradients_are_eagers(name, case):
    model, (given, kept) = model_of(name), inputs_of(name, case)
    found = []
    for implementation in ("eager", NAME):
        model.set_attn_implementation(implementation)
        out = model(**given)
        weights = [x for x in model.parameters() if x.requires_grad]
        grads = torch.autograd.grad(out.loss, weights, allow_unused=True)
        found.append((out.loss.detach(), out.logits.detach()[kept], grads))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


def generated(model, given, **options):
    return model.generate(**given, max_new_tokens=12, do_sample=False, **options)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "Llama" else pytest.mark.sweep)
        for name in MODELS
        if "Bert" not in name
    ],
)
def test_generated_tokens_are_eagers(name, cache):
    model, (given, _) = model_of(name), inputs_of(name, "padded")
    del given["labels"]
    options = {} if cache is None else {"cache_implementation": cache}
    wanted = generated(model, given, **options)
    model.set_attn_implementation(NAME)
    assert torch.equal(generated(model, given, **options), wanted)


@pytest.mark.sweep
def test_compiled():
    model, (given, _) = model_of("Mistral"), inputs_of("Mistral", "padded")
    wanted = model(**given)
    model.set_attn_implementation(NAME)
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(**given)
    torch.testing.assert_close(got.loss, wanted.loss)
    got.loss.backward()


def test_what_masks_become():
    masks = transformers.masking_utils
    window = masks.sliding_window_causal_mask_function(9)
    numbers = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
    places = torch.tensor([[0, 1, 0, 1, 2], [0, 0, 1, 0, 1]])
    packed = masks.and_masks(
        masks.remap_positions_for_packed_sequence(masks.causal_mask_function, places),
        masks.packed_sequence_mask_function(numbers),
    )
    kept = torch.ones(2, 5, dtype=torch.bool)
    for given, options, keys in (
        ({}, {"causal": True, "window_size": (-1, 0)}, 5),
        ({"attention_mask": kept}, {"causal": True, "window_size": (-1, 0)}, 5),
        (
            {"mask_function": window, "local_size": 9, "q_offset": 11, "kv_offset": 3},
            {"causal": True, "window_size": (8, 0)},
            13,
        ),
        (
            {"mask_function": masks.bidirectional_mask_function},
            {"causal": False, "window_size": (-1, -1)},
            5,
        ),
        ({"mask_function": packed}, {"causal": True, "window_size": (-1, 0)}, None),
    ):
        seen = seen_keys(2, 5, 16 if "q_offset" in given else 5, **given)
        assert isinstance(seen, Seen) and (seen.options, seen.keys) == (options, keys)
    assert seen.lengths["cu_seqlens_q"].tolist() == [0, 2, 5, 6, 8, 10]
    padded = seen_keys(2, 5, 5, attention_mask=kept & (torch.arange(5) > 0))
    assert padded.options["mask_mod"] is not None and padded.options["causal"]
    short = seen_keys(2, 5, 9, q_offset=4, attention_mask=kept)  # what it lacks is padding
    keys = torch.arange(9)
    assert short.options["mask_mod"](0, 0, 0, keys).tolist() == (keys < 5).tolist()
    wide = masks.sliding_window_bidirectional_mask_function(3)
    aligned, shifted = (seen_keys(2, 5, n, mask_function=wide, local_size=3) for n in (5, 9))
    assert aligned.options["window_size"] == (3, 3) and shifted.options.keys() == {"mask_mod"}
    odd = seen_keys(2, 5, 5, mask_function=lambda b, h, q, k: (q + k) % 2 == 0)
    assert odd.options.keys() == {"mask_mod"}


def test_names_with_flash_are_refused():
    with pytest.raises(ValueError, match="must not contain 'flash'"):
        register("tvm_flash")
