"""Serve 40 requests that come and go: every step is one packed batch over a cache in pages.

    python examples/serving.py [--requests 40] [--seed 0]

A small transformer with random weights. A step takes the prompts of those that have just come and
one token of all others; no row is padding. Each request gets the tokens that plain torch finds for
it alone, computing everything anew for every token.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, deque
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from tvm_flash import PagedCache, apply_rotary, flash_attn_with_kvcache

LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, LONGEST = 2, 4, 2, 32, 256, 128
WIDTH, PAGES, PAGE_SIZE = HEADS * HEAD_DIM, 64, 16


class Block(nn.Module):
    """Attention with fewer key heads than heads, and a feed-forward layer."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x, attention):
        """x (total, WIDTH); attention(q, k, v) takes (total, heads, HEAD_DIM)."""
        heads = self.qkv(self.norm_1(x)).unflatten(-1, (-1, HEAD_DIM))
        x = x + self.project(attention(*heads.split([HEADS, KV_HEADS, KV_HEADS], -2)).flatten(-2))
        return x + self.feed(self.norm_2(x))


class Model(nn.Module):
    """A decoder-only transformer with rotary positions, which takes the likeliest token."""

    def __init__(self):
        super().__init__()
        self.token, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        angles = torch.outer(torch.arange(LONGEST), 1e-4 ** torch.linspace(0, 1, HEAD_DIM // 2))
        self.cos, self.sin = angles.cos(), angles.sin()

    def likeliest(self, x):
        """The token after each row of x (rows, WIDTH)."""
        return F.linear(self.norm(x), self.token.weight).argmax(-1).tolist()

    def step(self, cache, ids, new):
        """The next token of each sequence in ``ids``, after its ``new`` tokens joined the cache."""
        counts = torch.tensor([*map(len, new)], dtype=torch.int32)
        cu_seqlens = F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        past = cache.seqlens_of(ids)
        cache.extend(ids, counts.tolist())  # pages for all layers, which the calls below fill
        options = {
            "rotary_cos": self.cos, "rotary_sin": self.sin, "rotary_interleaved": False,
            "cache_seqlens": past, "block_table": cache.block_table(ids), "causal": True,
            "cu_seqlens_q": cu_seqlens, "cu_seqlens_k_new": cu_seqlens,
        }  # fmt: skip
        x = self.token(torch.tensor([*chain.from_iterable(new)]))
        for block, *pages in zip(self.blocks, cache.k_pages, cache.v_pages, strict=True):
            x = block(x, lambda q, k, v, at=pages: flash_attn_with_kvcache(q, *at, k, v, **options))
        return self.likeliest(x[cu_seqlens[1:] - 1])

    def after(self, tokens):
        """The token after ``tokens``, by torch alone and without a cache."""

        def attention(q, k, v):
            q, k = (apply_rotary(x[None], self.cos, self.sin)[0] for x in (q, k))
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return out.transpose(0, 1)

        x = self.token(torch.tensor(tokens))
        for block in self.blocks:
            x = block(x, attention)
        return self.likeliest(x[-1:])[0]


class Request:
    """``wanted`` tokens are asked for after ``prompt``, from step ``arrival`` on."""

    def __init__(self, count):
        self.arrival, length, self.wanted = (int(torch.randint(1, n, ())) for n in (count, 90, 30))
        self.prompt, self.tokens = torch.randint(VOCABULARY, (length,)).tolist(), []
        self.pages = -(-(length + self.wanted) // PAGE_SIZE)  # at its end


@torch.no_grad()
def serve(model, requests, cache):
    """Give every request its tokens; returns what that took, counted."""
    counts, running = Counter(), {}
    waiting = deque(sorted(requests, key=lambda request: request.arrival))
    while waiting or running:
        while waiting and waiting[0].arrival <= counts["steps"]:
            if sum(one.pages for one in (*running.values(), waiting[0])) > PAGES:
                break  # it waits until another has gone
            running[cache.allocate()] = waiting.popleft()
        counts["steps"] += 1
        if not running:
            continue
        new = [request.tokens[-1:] or request.prompt for request in running.values()]
        found = model.step(cache, [*running], new)
        counts["rows"] += sum(map(len, new))
        counts["padded"] += len(new) * max(map(len, new))
        counts["pages"] = max(counts["pages"], PAGES - cache.num_free_pages)
        for (sequence, request), token in zip([*running.items()], found, strict=True):
            request.tokens.append(token)
            if len(request.tokens) == request.wanted:
                cache.free([sequence])
                del running[sequence]
    return counts


@torch.no_grad()
def decode_alone(model, request):
    """The tokens of ``request``, by torch alone."""
    tokens = [*request.prompt]
    for _ in range(request.wanted):
        tokens.append(model.after(tokens))
    return tokens[len(request.prompt) :]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    model, requests = Model(), [Request(given.requests) for _ in range(given.requests)]
    cache = PagedCache(PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM, num_layers=LAYERS)
    started = time.perf_counter()
    counts = serve(model, requests, cache)
    seconds = time.perf_counter() - started
    made = sum(len(request.tokens) for request in requests)
    right = sum(request.tokens == decode_alone(model, request) for request in requests)
    print(f"{made} tokens of {len(requests)} requests in {counts['steps']} steps")
    print(f"{seconds:.2f} s, {made / seconds:.0f} tokens a second (the first run compiles kernels)")
    print(f"{counts['rows']} rows were computed; padded batches would have {counts['padded']}")
    print(f"cache: at most {counts['pages']} of {PAGES} pages, {PAGES - cache.num_free_pages} now")
    print(f"{right} of {len(requests)} requests have the tokens that they have alone")
    if right < len(requests):
        raise SystemExit("the tokens of the others differ")


if __name__ == "__main__":
    main()
