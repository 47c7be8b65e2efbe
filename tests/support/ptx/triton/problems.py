"""Launches of the Triton kernels of this folder on random data, and what float64 says to them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ml_dtypes
import numpy as np

from tvm_flash.ptx_interpreter import Checks, DeviceMemory, Report, TensorMap, launch, parse

HERE = Path(__file__).resolve().parent
LOG2E = math.log2(math.e)
DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}
SWIZZLE_BYTES = (0, 32, 64, 128)  # by CUtensorMapSwizzle
# Triton lets no fence follow mbarrier.init.
CHECKS = Checks(init_fence=False)
# Largest error over largest result. float32 is multiplied as TF32, with 10 bits of mantissa.
TOLERANCE = {"fp16": 2e-3, "bf16": 1.6e-2, "fp32": 2e-3}


@dataclass(frozen=True, eq=False)
class Fixture:
    """A kernel of this folder and its entry in fixtures.json."""

    name: str
    text: str
    info: dict

    @property
    def kernel(self) -> str:
        """The entry's name."""
        return self.info["kernel"]

    @property
    def dtype(self) -> str:
        """Triton's name of the element type of the first argument."""
        first = next(iter(self.info["arguments"].values()))
        return next(name for name in DTYPES if name in first)

    def parsed(self):
        """The kernel, parsed."""
        return parse(self.text).kernels[self.kernel]


@lru_cache(maxsize=1)
def fixtures() -> dict[str, Fixture]:
    """All of them by name."""
    document = json.loads((HERE / "fixtures.json").read_text(encoding="utf-8"))["fixtures"]
    return {
        name: Fixture(name, (HERE / f"{name}.ptx").read_text(encoding="utf-8"), info)
        for name, info in document.items()
    }


def problems(fixture: Fixture) -> list[Callable]:
    """Launches that visit every branch of the kernel; each takes the parsed kernel and raises."""
    build, sizes = PROBLEMS[fixture.kernel]
    return [build(fixture, *size) for size in sizes]


@dataclass(frozen=True, eq=False)
class Problem:
    """Arrays by argument name, and the exact results of those that the kernel writes.

    rounded_once: the kernel computes in float32 and rounds the result only.
    """

    fixture: Fixture
    grid: tuple[int, int]
    values: dict[str, object]
    exact: dict[str, np.ndarray]
    rounded_once: bool = False

    def __call__(self, kernel) -> Report:
        """Launch under CHECKS; AssertionError when a result is wrong or not written."""
        memory, info = DeviceMemory(), self.fixture.info
        arguments = [self._place(memory, name, kind) for name, kind in info["arguments"].items()]
        scratch = info["parameters"].split()[-2:]  # two pointers that these kernels do not use
        flat = [part for argument in arguments for part in argument] + [0 for _ in scratch]
        block = (32 * info["num_warps"], 1, 1)
        report = launch(
            kernel, (*self.grid, 1), block, flat, memory,
            shared_bytes=info["shared_bytes"], checks=CHECKS,
        )  # fmt: skip
        for buffer in memory.buffers:
            if buffer.name in self.exact:
                buffer.expect_written()
                self._compare(buffer.name, buffer.numpy())
        return report

    def _place(self, memory: DeviceMemory, name: str, kind: str) -> list:
        """The launch arguments that stand for one argument of the Triton function."""
        if kind[0] == "*":
            if name in self.exact:
                return [memory.empty(name, self.exact[name].shape, DTYPES[kind[1:]])]
            return [memory.array(name, self.values[name])]
        if kind.startswith("tensordesc"):
            return self._descriptor(memory, name)
        return [self.values[name]]

    def _descriptor(self, memory: DeviceMemory, name: str) -> list:
        """A tensor map, then the shape and strides that Triton passes beside it."""
        info, dtype = self.fixture.info, DTYPES[self.fixture.dtype]
        descriptors = [x for x, kind in info["arguments"].items() if kind[0] == "t"]
        described = info["maps"][descriptors.index(name)]
        if name in self.exact:
            buffer = memory.empty(name, self.exact[name].shape, dtype)
        else:
            buffer = memory.array(name, self.values[name])
        shape = buffer.shape
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        size = np.dtype(dtype).itemsize
        made = TensorMap(
            buffer, np.dtype(dtype).name, shape[::-1], tuple(s * size for s in strides[-2::-1]),
            tuple(described["box"][::-1]), SWIZZLE_BYTES[described["swizzle"]],
        )  # fmt: skip
        return [made, *shape, *strides]

    def _compare(self, name: str, found: np.ndarray) -> None:
        exact, found = self.exact[name], found.astype(np.float64)
        with np.errstate(invalid="ignore"):
            close = (found == exact) | (np.abs(found - exact) <= self._limit(exact))
        wrong = np.argwhere(~close)
        assert not len(wrong), (
            f"{name}: {len(wrong)} of {close.size} wrong, first at {tuple(wrong[0])}: "
            f"{found[tuple(wrong[0])]} for {exact[tuple(wrong[0])]}"
        )

    def _limit(self, exact: np.ndarray):
        if self.rounded_once:
            return np.abs(exact) * float(ml_dtypes.finfo(DTYPES[self.fixture.dtype]).eps) + 1e-4
        largest = np.abs(exact[np.isfinite(exact)]).max(initial=0)
        return TOLERANCE[self.fixture.dtype] * max(largest, 1e-3)


def _random(generator, shape, dtype: str, scale: float = 1.0) -> np.ndarray:
    return (generator.standard_normal(shape) * scale).astype(DTYPES[dtype])


def _tiles(size: int, block: int) -> int:
    return -(-size // block)


def _attention(fixture: Fixture, seqlen_q: int, seqlen_k: int, heads: int, logits: float):
    """Inputs, the constants of the kernel, and p, out and lse in float64."""
    generator = np.random.default_rng(seqlen_q * 1000 + seqlen_k)
    constants = fixture.info["constants"]
    dim, dtype = constants["D"], fixture.dtype
    q = _random(generator, (heads, seqlen_q, dim), dtype, abs(logits))
    k, v = (_random(generator, (heads, seqlen_k, dim), dtype) for _ in range(2))
    if logits < 0:  # every score near logits * sqrt(D): a hidden key that counts as 0 would win
        q, k = (q * DTYPES[dtype](0.1) + DTYPES[dtype](x) for q, x in ((q, logits), (k, 1)))
    dout = _random(generator, (heads, seqlen_q, dim), dtype)
    wide = {name: x.astype(np.float64) for name, x in zip("qkvo", (q, k, v, dout), strict=True)}
    scores = wide["q"] @ wide["k"].swapaxes(1, 2) * dim**-0.5
    if constants.get("CAUSAL"):
        rows, keys = np.arange(seqlen_q)[:, None], np.arange(seqlen_k)[None, :]
        scores = np.where(keys <= rows + seqlen_k - seqlen_q, scores, -np.inf)
    largest = scores.max(axis=2, keepdims=True, initial=-1e30)
    powers = np.exp(scores - largest)
    total = powers.sum(axis=2, keepdims=True)
    p = powers / np.where(total == 0, 1, total)
    with np.errstate(divide="ignore"):
        lse = np.where(total == 0, np.inf, (largest + np.log(total)) * LOG2E)[..., 0]
    numbers = {"scale": dim**-0.5, "scale_log2": dim**-0.5 * LOG2E}
    numbers |= {"seqlen_q": seqlen_q, "seqlen_k": seqlen_k}
    values = {"q": q, "k": k, "v": v, "dout": dout, **numbers}
    return values, wide, p, p @ wide["v"], lse


def attention_forward(fixture: Fixture, seqlen_q, seqlen_k, heads=1, logits=1.0) -> Problem:
    """out and lse."""
    values, _, _, out, lse = _attention(fixture, seqlen_q, seqlen_k, heads, logits)
    grid = (_tiles(seqlen_q, fixture.info["constants"]["BLOCK_Q"]), heads)
    return Problem(fixture, grid, values, {"out": out, "lse": lse})


def attention_delta(fixture: Fixture, seqlen_q, seqlen_k, heads=1, logits=1.0) -> Problem:
    """rowsum(out * dout)."""
    values, wide, _, out, _ = _attention(fixture, seqlen_q, seqlen_k, heads, logits)
    values["out"] = out.astype(DTYPES[fixture.dtype])
    exact = (values["out"].astype(np.float64) * wide["o"]).sum(axis=2)
    grid = (_tiles(seqlen_q, fixture.info["constants"]["BLOCK_Q"]), heads)
    return Problem(fixture, grid, values, {"delta": exact})


def attention_gradients(fixture: Fixture, seqlen_q, seqlen_k, heads=1, logits=1.0) -> Problem:
    """dk and dv, or dq."""
    values, wide, p, out, lse = _attention(fixture, seqlen_q, seqlen_k, heads, logits)
    delta = (out * wide["o"]).sum(axis=2)
    values |= {"lse": lse.astype(np.float32), "delta": delta.astype(np.float32)}
    ds = p * (wide["o"] @ wide["v"].swapaxes(1, 2) - delta[:, :, None]) * values["scale"]
    constants = fixture.info["constants"]
    if "dq" in fixture.info["arguments"]:
        grid = (_tiles(seqlen_q, constants["BLOCK_Q"]), heads)
        return Problem(fixture, grid, values, {"dq": ds @ wide["k"]})
    grid = (_tiles(seqlen_k, constants["BLOCK_K"]), heads)
    exact = {"dk": ds.swapaxes(1, 2) @ wide["q"], "dv": p.swapaxes(1, 2) @ wide["o"]}
    return Problem(fixture, grid, values, exact)


def matmul(fixture: Fixture, m: int, n: int, k: int) -> Problem:
    """c = a @ b."""
    generator = np.random.default_rng(m * n * k)
    a, b = (_random(generator, shape, fixture.dtype) for shape in ((m, k), (k, n)))
    tiles = fixture.info["constants"]
    grid = (_tiles(m, tiles["BLOCK_M"]), _tiles(n, tiles["BLOCK_N"]))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return Problem(fixture, grid, {"a": a, "b": b, "m": m, "n": n, "k": k}, {"c": exact})


def softmax(fixture: Fixture, rows: int, columns: int) -> Problem:
    """softmax of each row."""
    x = _random(np.random.default_rng(columns), (rows, columns), fixture.dtype, 3.0)
    powers = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True).astype(np.float64))
    exact = powers / powers.sum(axis=1, keepdims=True)
    return Problem(fixture, (rows, 1), {"x": x, "columns": columns}, {"y": exact}, True)


def layer_norm(fixture: Fixture, rows: int, columns: int) -> Problem:
    """Layer norm of each row."""
    generator = np.random.default_rng(columns)
    x = _random(generator, (rows, columns), fixture.dtype, 2.0) + DTYPES[fixture.dtype](1)
    weight, bias = (_random(generator, columns, "fp32") for _ in range(2))
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    exact = centred / np.sqrt(wide.var(axis=1, keepdims=True) + 1e-5) * weight + bias
    values = {"x": x, "weight": weight, "bias": bias, "columns": columns, "epsilon": 1e-5}
    return Problem(fixture, (rows, 1), values, {"y": exact}, True)


# Many tiles, so that a pipeline turns over; more queries than keys (causal: rows without a key);
# large logits, which need the running maximum. Then every residue that a limit can have in the
# fragment of an mma: tiles of 64 hold four groups of 16 rows, tiles of 32 eight pairs of columns.
# Last, what only a full tile less one, many tiles in either loop, or an lse of -200 shows.
_LENGTHS = (
    (65, 130), (96, 96), (130, 33), (40, 161, 2, 8.0), (1, 7),
    (5, 34), (21, 35), (37, 42), (55, 43), (9, 50), (24, 51), (40, 58), (60, 27),
    (64, 32), (1, 31), (20, 1100), (70, 75, 1, -24.0), (170, 180),
)  # fmt: skip
_SWAPPED = tuple((seqlen_k, seqlen_q, *rest) for seqlen_q, seqlen_k, *rest in _LENGTHS)
PROBLEMS = {
    "attention_forward": (attention_forward, _LENGTHS),
    "attention_delta": (attention_delta, ((65, 9), (32, 9, 2), (10, 9), (27, 9))),
    "attention_key_gradients": (attention_gradients, (*_SWAPPED, (1, 7), (1, 90))),
    "attention_query_gradient": (attention_gradients, _LENGTHS),
    "matmul": (
        matmul,
        ((80, 112, 144), (64, 64, 32), (16, 16, 16), (130, 48, 96), (37, 32, 48), (120, 16, 64)),
    ),
    "matmul_tma": (matmul, ((72, 136, 200), (64, 64, 64), (64, 64, 192))),
    "softmax": (softmax, ((2, 512), (2, 300), (2, 70), (2, 181), (1, 387), (1, 1))),
    "layer_norm": (layer_norm, ((2, 512), (2, 300), (1, 255), (1, 513), (2, 14), (1, 1))),
}
