"""What the machine can do at best: the rate of a large matmul, and of a large copy."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from ..problem.dtype import DTYPES
from .device import DEVICES
from .host import total_memory
from .rows import warmed_up
from .timing import Patience, Timing, interleaved

# Without a dtype's own products torch may multiply very slowly: what fits into seconds is taken.
SIZES = {"cpu": (512, 1024, 2048), "cuda": (8192,)}
PRODUCT_SECONDS = 2.0
# Far beyond the last cache of today's servers; less where the machine is small.
COPY_BYTES = {"cpu": 512 * 2**20, "cuda": 2**32}


@dataclass(frozen=True)
class Floors:
    """Rates on ``threads`` threads: GFLOP/s of a matmul by dtype, GB/s read plus written by a copy.

    isa: "host", the instructions that torch was restricted to, or a device that is no CPU. spread:
    the widest of them all.
    """

    threads: int
    isa: str
    matmul_gflops: dict[str, float]
    copy_gbytes: float
    spread: float

    def to_json(self) -> dict:
        """A plain dictionary."""
        return asdict(self)


def measure_floors(
    threads: int,
    isa: str = "host",
    dtypes: tuple[str, ...] = tuple(DTYPES),
    quick: bool = False,
    device: str = "cpu",
) -> Floors:
    """Floors on the present number of threads, which ``threads`` names, or of ``device``."""
    patience = Patience(3, 15, 0.1 if quick else 1.0, steady=0.05, budget=0.1 if quick else 5.0)
    sizes = SIZES[device][:1] if quick else SIZES[device]
    products = {dtype: matmul_timing(dtype, sizes, patience, device) for dtype in dtypes}
    copied, copying = copy_timing(COPY_BYTES[device] // (8 if quick else 1), patience, device)
    return Floors(
        threads,
        isa if device == "cpu" else device,
        {dtype: 2.0 * size**3 / t.median / 1e9 for dtype, (size, t) in products.items()},
        2.0 * copied / copying.median / 1e9,
        max(copying.spread, *(timing.spread for _, timing in products.values())),
    )


def matmul_timing(
    dtype: str, sizes: tuple[int, ...], patience: Patience, device: str = "cpu"
) -> tuple[int, Timing]:
    """The largest of ``sizes`` that takes no more than some seconds, and its time."""
    for size, larger in zip(sizes, (*sizes[1:], None), strict=True):
        shape, kind = (size, size), getattr(torch, dtype)
        a, b = (torch.randn(shape, device=device).to(kind) for _ in range(2))
        out = torch.empty_like(a)

        def product(a=a, b=b, out=out):
            return torch.mm(a, b, out=out)

        _, seconds = warmed_up(product, DEVICES[device])
        if larger is None or seconds * (larger / size) ** 3 > PRODUCT_SECONDS:
            taken = {"warm": {dtype: seconds}, "stopwatch": DEVICES[device].stopwatch}
            return size, interleaved({dtype: product}, patience, **taken)[dtype]
    raise ValueError("sizes is empty")


def copy_timing(most_bytes: int, patience: Patience, device: str = "cpu") -> tuple[int, Timing]:
    """Bytes of a large float32 array, and the time to copy it."""
    memory = torch.cuda.mem_get_info()[1] if device == "cuda" else total_memory()
    held = min(most_bytes, (memory or 4 * 2**30) // 8)
    source = torch.zeros(held // 4, device=device)
    target = torch.empty_like(source)
    calls = {"copy": lambda: target.copy_(source)}
    timings = interleaved(calls, patience, stopwatch=DEVICES[device].stopwatch)
    return held, timings["copy"]
