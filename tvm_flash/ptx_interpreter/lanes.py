"""Registers of many lanes, and the sets of lanes that execute together."""

import numpy as np

VIEWS = {
    "pred": (("pred", np.bool_),),
    16: (("u16", np.uint16), ("s16", np.int16), ("f16", np.float16)),
    32: (("u32", np.uint32), ("s32", np.int32), ("f32", np.float32)),
    64: (("u64", np.uint64), ("s64", np.int64), ("f64", np.float64)),
}
FILE_DTYPE = {width: views[0][1] for width, views in VIEWS.items()}
# A register nobody wrote holds a NaN of every width.
POISON = {"pred": False, 16: 0xFFFF, 32: 0xFFFFFFFF, 64: 0xFFFFFFFFFFFFFFFF}


class LaneSet:
    """Lanes with one program counter, as a mask over [blocks * threads]."""

    def __init__(self, mask, blocks, threads):
        self.mask, self.threads = mask, threads
        self.index = np.flatnonzero(mask)
        self.size = len(self.index)
        self.block = self.index // threads
        self.rect = self._rectangle(mask.reshape(blocks, threads))
        per_warp = mask.reshape(-1, 32).sum(axis=1)
        self.warps = np.flatnonzero(per_warp)
        self.whole = bool((per_warp[self.warps] == 32).all())
        self.context = None
        self._blocks = None

    @property
    def blocks(self):
        """The blocks that have lanes here."""
        if self._blocks is None:
            self._blocks = np.unique(self.block)
        return self._blocks

    def _rectangle(self, grid):
        if not self.size:
            return None
        rows, cols = np.flatnonzero(grid.any(axis=1)), np.flatnonzero(grid.any(axis=0))
        b0, b1, t0, t1 = rows[0], rows[-1] + 1, cols[0], cols[-1] + 1
        full = self.size == (b1 - b0) * (t1 - t0)
        return (int(b0), int(b1), int(t0), int(t1)) if full else None


class Context:
    """What an instruction's closure sees: `v[view][row]` is a register of the lanes here.

    index: lane numbers in [blocks * threads], flat; block: their blocks in the chunk;
    warps: their warp numbers; whole: only full warps; lanes: their LaneSet, if they are one."""

    __slots__ = (
        "block", "index", "lanes", "n", "run", "shape", "shared_base", "v", "warps", "whole",
    )  # fmt: skip

    def __init__(self, run, index, block, warps, whole, shape, v):
        self.run, self.index, self.block = run, index, block
        self.warps, self.whole, self.shape, self.v = warps, whole, shape, v
        self.lanes = None
        self.n = len(index)
        self.shared_base = block * run.shared.stride

    @classmethod
    def of(cls, run, lanes, shape, v):
        """The context of a LaneSet."""
        c = cls(run, lanes.index, lanes.block, lanes.warps, lanes.whole, shape, v)
        c.lanes = lanes
        return c

    def part(self, chosen, touched, body):
        """Run `body` on the lanes of the flat mask `chosen`, with copies of their registers."""
        index = self.index[chosen]
        shaped = chosen.reshape(self.shape)
        v = {name: {} for name in self.v}
        rows = set(touched)
        for width, row, _ in rows:
            main = VIEWS[width][0][0]
            register = self.v[main][row][shaped]
            for name, dtype in VIEWS[width]:
                v[name][row] = register.view(dtype)
        warps, counts = np.unique(index >> 5, return_counts=True)
        whole = bool((counts == 32).all())
        child = Context(self.run, index, self.block[chosen], warps, whole, index.shape, v)
        body(child)
        for width, row, written in rows:
            if written:
                main = VIEWS[width][0][0]
                self.v[main][row][shaped] = v[main][row]


class Registers:
    """The register files of a chunk: one array [rows, blocks * threads] per width."""

    def __init__(self, rows, blocks, threads):
        self.blocks, self.threads = blocks, threads
        self.files = {}
        for width, count in rows.items():
            shape = (count, blocks * threads)
            self.files[width] = np.full(shape, POISON[width], FILE_DTYPE[width])

    def rectangle(self, rect):
        """Views of all registers for blocks b0:b1 and threads t0:t1, and their shape."""
        b0, b1, t0, t1 = rect
        views = {}
        for width, file in self.files.items():
            if t1 - t0 == self.threads or b1 - b0 == 1:
                part = file[:, b0 * self.threads + t0 : (b1 - 1) * self.threads + t1]
            else:
                grid = file.reshape(len(file), self.blocks, self.threads)
                part = grid[:, b0:b1, t0:t1]
            for name, dtype in VIEWS[width]:
                views[name] = list(part.view(dtype))
            shape = part.shape[1:]
        return views, shape

    def gather(self, index, touched):
        """Copies of the registers in `touched` for the lanes of `index`."""
        views = {}
        for width, (rows, _) in touched.items():
            copy = self.files[width][rows[:, None], index]
            for name, dtype in VIEWS[width]:
                views[name] = dict(zip(rows.tolist(), copy.view(dtype), strict=True))
        return views

    def scatter(self, index, touched, views):
        """Store the written registers of copies made by gather."""
        for width, (_, written) in touched.items():
            if len(written):
                copies = views[VIEWS[width][0][0]]
                values = np.stack([copies[row] for row in written.tolist()])
                self.files[width][written[:, None], index] = values
