"""The pages of the reference: which names stand together; their text is that of the docstrings."""

from __future__ import annotations

from typing import NamedTuple

# Modules whose functions stand elsewhere under the same names.
NAMED_AGAIN = {"flash_attn_interface"}


class Page(NamedTuple):
    """A page: its title, what stands on top, and names of tvm_flash or paths in it."""

    title: str
    intro: str
    names: tuple[str, ...]


PAGES = {
    "attention": Page(
        "Attention",
        "Functions on dense tensors, and what describes a problem when its kernel is compiled. "
        "`attention` takes every option.",
        (
            "attention", "scaled_dot_product_attention", "flex_attention", "capture",
            "merge_states", "softmax", "logsumexp",
        ),
    ),
    "flash_attention": Page(
        "FlashAttention's functions",
        "Signatures and layouts of FlashAttention-2. `tvm_flash.flash_attn_interface` has the same "
        "under the names of its module, `tvm_flash.bert_padding` what packs padded batches.",
        (
            "flash_attn_func", "flash_attn_qkvpacked_func", "flash_attn_kvpacked_func",
            "flash_attn_varlen_func", "flash_attn_varlen_qkvpacked_func",
            "flash_attn_varlen_kvpacked_func", "flash_attn_with_kvcache", "apply_rotary_emb",
            "flash_attn_interface", "bert_padding",
        ),
    ),
    "sequences": Page(
        "Sequences and caches",
        "Sequences of any lengths, and keys in pages: [serving](../serving.md) shows them at work.",
        ("varlen_attention", "PagedCache", "apply_rotary"),
    ),
    "masks": Page(
        "Masks and blocks",
        "With pictures: [masks](../masks.md) and [block masks](../block_masks.md).",
        ("block_mask", "BlockMask", "top_blocks", "masks"),
    ),
    "linear": Page(
        "Linear attention",
        "What it computes and costs: [linear attention](../linear_attention.md).",
        ("linear_attention", "feature_maps"),
    ),
    "kernels": Page(
        "Kernels ahead of time",
        "On a command line: `tvm-flash build --help`. What is in an artifact: "
        "[artifacts](../artifacts.md).",
        ("build", "load", "AttentionSpec"),
    ),
    "integrations": Page(
        "Other libraries",
        "How they are used: [in other libraries](../integrations.md).",
        (
            "sdpa", "integrations.transformers.register",
            "integrations.xformers.memory_efficient_attention", "integrations.jax.attention",
        ),
    ),
    "distributed": Page(
        "Many processes",
        "Who keeps what, and what travels: [many processes](../distributed.md).",
        ("distributed",),
    ),
    "errors": Page(
        "Errors",
        "Wrong arguments raise ValueError or TypeError before any kernel runs; these are the "
        "package's own.",
        ("TvmFlashError", "UnsupportedSpec", "ArtifactError", "BuildError", "CacheFull"),
    ),
}  # fmt: skip


def pages() -> dict[str, str]:
    """By place in the site, the Markdown of each page."""
    return {f"reference/{name}.md": _text(page) for name, page in PAGES.items()}


def _text(page: Page) -> str:
    return "\n\n".join([f"# {page.title}", page.intro, *map(_entry, page.names)]) + "\n"


def _entry(name: str) -> str:
    """What mkdocstrings replaces by the documentation of a name."""
    entry = f"::: tvm_flash.{name}"
    return f"{entry}\n    options:\n      members: false" if name in NAMED_AGAIN else entry
