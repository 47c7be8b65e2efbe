"""Source values for opcode rows: the edges of every type and random values between them."""

import numpy as np

EDGE_FLOATS = [0.0, -0.0, 1.0, -1.0, 1.5, 2.5, -2.5, 0.1, 3.0e38, -3.0e38, 1e-38, 7.25, 65504.0]
SPECIAL_FLOATS = [np.inf, -np.inf, np.nan, 1e-42, -1e-45]


def sample(kind, count, seed):
    """`count` values of a PTX type as a numpy array."""
    rng = np.random.default_rng(seed)
    if kind == "pred":
        return rng.integers(0, 2, count).astype(np.uint32)
    if kind in ("f16", "f32", "f64"):
        return _floats(kind, count, rng)
    if kind in ("bf16", "bf16x2"):
        return _bf16(kind, count, rng)
    if kind == "f16x2":
        return _floats("f16", 2 * count, rng).view(np.uint32)
    if kind == "e4m3x2":
        return rng.integers(0, 1 << 16, count).astype(np.uint16)
    return _integers(kind, count, rng)


def _floats(kind, count, rng):
    dtype = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind]
    with np.errstate(over="ignore"):
        edges = np.array(EDGE_FLOATS + SPECIAL_FLOATS, np.float64).astype(dtype)
    scale = np.exp2(rng.integers(-8, 9, count))
    values = (rng.standard_normal(count) * scale).astype(dtype)
    chosen = rng.random(count) < 0.3
    values[chosen] = rng.choice(edges, chosen.sum())
    return values


def _bf16(kind, count, rng):
    pairs = 2 if kind.endswith("x2") else 1
    bits = _floats("f32", count * pairs, rng).view(np.uint32) >> 16
    halves = bits.astype(np.uint16)
    return halves.view(np.uint32) if pairs == 2 else halves


def _integers(kind, count, rng):
    bits = int(kind[1:])
    info = np.iinfo(np.dtype(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}"))
    values = rng.integers(info.min, info.max, count, info.dtype, endpoint=True)
    small = rng.random(count) < 0.4
    values[small] = rng.integers(0, 40, small.sum())
    edges = np.array([info.min, info.max, 0, 1, info.max - 1, bits, bits - 1], info.dtype)
    chosen = rng.random(count) < 0.2
    values[chosen] = rng.choice(edges, chosen.sum())
    return values
