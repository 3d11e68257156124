"""NAL units and their bits, as H.264 and HEVC share them; and what a packet says about its picture."""

from collections.abc import Iterator
from typing import NamedTuple

# Emulation prevention keeps such a run out of NAL units: in a packet it is a hole in the file.
HOLE = bytes(8)


class Picture(NamedTuple):
    """What a packet says about its picture.

    Attributes:
        clean: decoding can start here, and every picture that follows in decode and presentation order is exact.
        layer: temporal layer.
        is_leaf: no picture of the same or a lower temporal layer refers to this one.
        follows_loss: a picture that this or later ones refer to is missing before it.
    """

    clean: bool
    layer: int = 0
    is_leaf: bool = False
    follows_loss: bool = False


class Bits:
    """Reads bits from the most significant on; EOFError past the end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def u(self, num_bits: int) -> int:
        """An unsigned number of so many bits."""
        self._left -= num_bits
        if self._left < 0:
            raise EOFError("past the last bit")
        return self._value >> self._left & (1 << num_bits) - 1

    def ue(self) -> int:
        """An unsigned Exp-Golomb code (H.264 9.1)."""
        rest = self._value & (1 << self._left) - 1
        num_zeros = self._left - rest.bit_length()
        return self.u(2 * num_zeros + 1) - 1

    def se(self) -> int:
        """A signed Exp-Golomb code (H.264 9.1.1)."""
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def unescaped(data: bytes) -> bytes:
    """The payload without emulation prevention bytes (H.264 7.4.1.1)."""
    return data.replace(b"\0\0\3", b"\0\0")


def nal_units(data: memoryview, length_bytes: int | None) -> Iterator[tuple[int, int]]:
    """(start, end) of each NAL unit; ``length_bytes`` is None for start codes (H.264 Annex B)."""
    if length_bytes is not None:
        at = 0
        while at + length_bytes < len(data):
            size = int.from_bytes(data[at : at + length_bytes], "big")
            at += length_bytes
            yield at, min(at + size, len(data))
            at += size
        return
    raw = bytes(data)
    start = raw.find(b"\0\0\1")
    while start >= 0:
        following = raw.find(b"\0\0\1", start + 3)
        yield start + 3, following if following >= 0 else len(data)
        start = following
