"""What a packet's first bytes say about its picture: can decoding start here, does any other picture need it.

H.264 and AV1 have modules of their own. References: H.265 = ITU-T H.265 (7.3.1.2, 7.4.2.2); VP9 = VP9 bitstream
specification (6.2, Annex B).
"""

from collections.abc import Callable
from typing import NamedTuple

from models.video.av1 import Av1Reader
from models.video.h264 import H264Reader
from models.video.nal import Picture, nal_units
from models.video.order import OrderUnknown


class PacketReader(NamedTuple):
    """How to read one stream's packets, from the first on.

    Attributes:
        picture: (packet's bytes, key flag) -> `Picture`.
        has_escapes: the packets are NAL units with lengths, in which `nal.HOLE` cannot stand.
    """

    picture: Callable[[memoryview, bool], Picture]
    has_escapes: bool = False


INTRA_ONLY = frozenset({"mjpeg", "prores", "dnxhd", "png"})


def packet_reader(codec: str, extradata: bytes | None) -> PacketReader | None:
    """The reader for a codec; None where packets do not tell enough and every frame has to be decoded."""
    header = extradata or b""
    if codec == "h264":
        reader = H264Reader(header)
        return PacketReader(reader, reader.length_bytes is not None)
    if codec == "hevc":
        length_bytes = (header[21] & 3) + 1 if len(header) > 22 and header[0] == 1 else None
        return PacketReader(lambda data, key: _read_hevc(data, length_bytes), length_bytes is not None)
    if codec == "vp9":
        return PacketReader(_read_vp9)
    if codec == "av1":
        return PacketReader(Av1Reader(header))
    if codec in INTRA_ONLY:
        return PacketReader(lambda data, key: Picture(clean=True, is_leaf=True))
    return None


def _read_hevc(data: memoryview, length_bytes: int | None) -> Picture:
    found: Picture | None = None
    for start, end in nal_units(data, length_bytes):
        if start + 2 > end:
            continue
        kind = data[start] >> 1 & 63
        layer_id = (data[start] & 1) << 5 | data[start + 1] >> 3
        if kind in (16, 17, 18, 36, 37):
            # After a broken link or an end of sequence the decoder leaves out pictures that the packets show.
            raise OrderUnknown("HEVC sequence with a broken link or an end-of-sequence unit")
        if kind < 32 and layer_id == 0 and found is None:
            temporal_id = (data[start + 1] & 7) - 1
            found = Picture(clean=kind in (19, 20, 21), layer=temporal_id, is_leaf=kind <= 14 and kind % 2 == 0)
    return found or Picture(clean=False)


def _read_vp9(data: memoryview, key: bool) -> Picture:
    if not data or data[0] >> 6 != 2:
        return Picture(clean=False)
    profile = data[0] >> 5 & 1 | data[0] >> 3 & 2
    flags = data[0] << 8 | data[1] if len(data) > 1 else data[0] << 8
    shift = 10 if profile == 3 else 11  # profile 3 has one reserved bit more
    shows_existing, is_inter, is_shown = (flags >> shift & 1, flags >> shift - 1 & 1, flags >> shift - 2 & 1)
    is_superframe = data[-1] & 0b1110_0000 == 0b1100_0000
    if not (shows_existing or is_shown or is_superframe):
        raise OrderUnknown("VP9 packet without a shown frame")
    return Picture(clean=not shows_existing and not is_inter)
