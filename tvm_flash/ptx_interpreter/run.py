"""The state of one chunk of blocks while it runs."""

import numpy as np

from . import kernel as k
from .lanes import Registers
from .races import SharedRaces
from .spaces import CONST_BASE, PARAM_BASE, BlockBytes
from .special import special_values


class Run:
    """Registers, shared and local memory of `blocks` blocks of `threads` (padded) threads."""

    def __init__(self, program, numbers, grid, block, params, memory, shared_bytes, counts):
        self.program, self.kernel, self.bind = program, program.kernel, program.bind
        self.checks = self.bind.checks
        self.grid, self.block_shape, self.memory, self.counts = grid, block, memory, counts
        self.numbers, self.params = numbers, params
        self.blocks = len(numbers)
        self.live_threads = int(np.prod(block))
        self.threads = -(-self.live_threads // 32) * 32
        self.lanes = self.blocks * self.threads
        self.dynamic_shared = shared_bytes
        self.shared = BlockBytes(self.blocks, self.bind.shared_bytes + shared_bytes)
        self.local = BlockBytes(self.lanes, self.bind.local_bytes)
        self.registers = Registers(self.bind.rows, self.blocks, self.threads)
        self.predicated = counts.predicated
        self.on_exit, self.has_async = [], False
        self.idle, self.on_finish, self.describe_wait = [], [], []
        self.races = self.global_races = None
        self.parts = {}
        self.thread_mask = np.arange(self.threads) < self.live_threads
        self.lane_mask = np.tile(self.thread_mask, self.blocks)
        self._fill_constants()

    def start(self, scheduler, seed):
        """Give the parts (barriers, copies...) that the program asked for their state."""
        self.scheduler, self.seed = scheduler, seed
        if self.checks.races and self.shared.size:
            self.races = SharedRaces(self, self.bind.proxies)
        for kind in self.bind.parts:
            self.part(kind)

    def finish(self):
        """Called when every lane has left."""
        for check in self.on_finish:
            check()
        self.counts.max_shared = max(self.counts.max_shared, self.shared.size)

    def part(self, kind):
        """The one instance of `kind` in this run, made on first use."""
        if kind not in self.parts:
            self.parts[kind] = kind(self)
        return self.parts[kind]

    def place(self, lane):
        """((x, y, z) of the block, (x, y, z) of the thread) of a lane number."""
        block, thread = divmod(lane, self.threads)
        return _coordinates(int(self.numbers[block]), self.grid), _coordinates(
            thread, self.block_shape
        )

    def constant_bytes(self, name):
        """(first address, bytes) of the parameter or constant space."""
        if name == "param":
            return PARAM_BASE, self.params
        return CONST_BASE, self.program_constants()

    def program_constants(self):
        """The bytes of the module's .const variables."""
        offsets, size = k.layout(self.kernel.variables, "const")
        data = np.zeros(max(size, 16), np.uint8)
        for name, offset in offsets.items():
            initial = self.kernel.variables[name].initial
            data[offset : offset + len(initial)] = np.frombuffer(initial, np.uint8)
        return data

    def observe_global(self, access, c, buffer, chosen, item, kind):
        """Count, and check for races between blocks."""
        self.counts.global_access(access, c, buffer, chosen, item, kind)
        if self.global_races is not None:
            self.global_races.access(access, c, buffer, chosen, item, kind)

    def observe_shared(self, access, c, item, kind, items=None):
        """Count, and check for races inside a block; `items` are the raw values just written."""
        self.counts.shared_access(access, c, item)
        if self.races is not None:
            self.races.access(access, c, item, kind, items)

    def _fill_constants(self):
        files = self.registers.files
        for (width, bits), row in self.bind.constants.items():
            if width != "pred":
                bits %= 1 << width
            files[width][row] = bits
        for (name, width), row in self.bind.specials.items():
            files[width][row] = special_values(self, name)
        for (name, offset, width), row in self.bind.module_symbols.items():
            files[width][row] = self._module_address(name) + offset

    def _module_address(self, name):
        variable = self.kernel.variables[name]
        if variable.space == "const":
            return k.layout(self.kernel.variables, "const")[0][name]
        if name not in self.memory.variables:
            data = np.zeros(variable.size, np.uint8)
            data[: len(variable.initial)] = np.frombuffer(variable.initial, np.uint8)
            buffer = self.memory.array(name, data, writable=True)
            self.memory.variables[name] = buffer
        return self.memory.variables[name].address


def _coordinates(number, shape):
    return number % shape[0], number // shape[0] % shape[1], number // (shape[0] * shape[1])
