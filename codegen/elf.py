"""What an ELF library asks of the machine that loads it: other libraries, and versions of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import BuildError

# Types of segments and tags of the dynamic section (gABI; symbol versions: LSB 5.0, 10.7).
_LOAD, _DYNAMIC = 1, 2
_NULL, _NEEDED, _STRTAB = 0, 1, 5
_VERNEED, _VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF


@dataclass(frozen=True)
class Needs:
    """libraries: names of what is loaded with it. versions: by library, such as GLIBC_2.28."""

    libraries: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]


def needs_of(data: bytes) -> Needs:
    """What the ELF file with these bytes needs; BuildError for any other file."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise BuildError("not an ELF file of 64 bits and little-endian words")
    try:
        return _Elf(data).needs()
    except (struct.error, ValueError) as error:
        raise BuildError(f"an ELF file that is damaged ({error})") from error


class _Elf:
    def __init__(self, data: bytes):
        self.data = data
        (headers,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        places = range(headers, headers + size * count, size)
        # type, offset, address, size in the file
        segments = [struct.unpack_from("<I4xQQ8xQ", data, place) for place in places]
        self.loaded = [segment[1:] for segment in segments if segment[0] == _LOAD]
        dynamic = [segment for segment in segments if segment[0] == _DYNAMIC]
        self.tags = list(self._tags(dynamic[0][1])) if dynamic else []

    def needs(self) -> Needs:
        known = dict(self.tags)
        if _STRTAB not in known:
            return Needs((), {})
        self.strings = self._offset(known[_STRTAB])
        libraries = tuple(self._text(value) for tag, value in self.tags if tag == _NEEDED)
        entries = self._versions(known.get(_VERNEED, 0), known.get(_VERNEEDNUM, 0))
        return Needs(libraries, dict(entries))

    def _tags(self, place: int) -> Iterator[tuple[int, int]]:
        while (pair := struct.unpack_from("<QQ", self.data, place))[0] != _NULL:
            yield pair
            place += 16

    def _versions(self, address: int, count: int) -> Iterator[tuple[str, tuple[str, ...]]]:
        """By library the versions that are asked of it."""
        place = self._offset(address) if count else 0
        for _ in range(count):
            _, names, library, first, following = struct.unpack_from("<HHIII", self.data, place)
            yield self._text(library), tuple(self._names(place + first, names))
            place += following

    def _names(self, place: int, count: int) -> Iterator[str]:
        for _ in range(count):
            _, _, _, name, following = struct.unpack_from("<IHHII", self.data, place)
            yield self._text(name)
            place += following

    def _offset(self, address: int) -> int:
        """Where in the file lies what is loaded at ``address``."""
        for offset, begin, size in self.loaded:
            if begin <= address < begin + size:
                return offset + address - begin
        raise ValueError(f"nothing is loaded at {address:#x}")

    def _text(self, number: int) -> str:
        begin = self.strings + number
        return self.data[begin : self.data.index(b"\0", begin)].decode()
