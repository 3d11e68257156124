"""H.264 packets: clean starts, pictures that no other refers to, and reference pictures that are missing.

References: ITU-T H.264, 7.3.1 (NAL units), 7.3.2.1.1 (sequence parameter set), 7.3.3 (slice header), 7.4.3 (frame_num),
D.1.8 (recovery point).
"""

from collections.abc import Iterator

from models.video.nal import Bits, Picture, nal_units, unescaped

HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})


class H264Reader:
    """Reads packets in decode order; remembers the last reference picture's frame_num to notice a gap."""

    def __init__(self, extradata: bytes) -> None:
        is_avcc = len(extradata) > 6 and extradata[0] == 1
        self.length_bytes = (extradata[4] & 3) + 1 if is_avcc else None
        self._frame_num_bits: int | None = None
        self._last_frame_num: int | None = None
        for sps in _avcc_parameter_sets(extradata) if is_avcc else ():
            self._frame_num_bits = _frame_num_bits(sps)

    def __call__(self, data: memoryview, key: bool) -> Picture:
        """What the packet says about its picture."""
        recovers = False
        for start, end in nal_units(data, self.length_bytes):
            if start >= end:
                continue
            kind = data[start] & 31
            if kind == 5:
                self._last_frame_num = 0
                return Picture(clean=True)
            if kind in (1, 2):
                is_leaf = not data[start] & 0b0110_0000
                is_clean = key and recovers
                has_gap = self._has_gap(bytes(data[start + 1 : start + 17]), is_leaf)
                return Picture(clean=is_clean, is_leaf=is_leaf, follows_loss=has_gap and not is_clean)
            if kind == 6 and key:
                recovers = recovers or _recovers_at_once(bytes(data[start + 1 : end]))
            if kind == 7:
                self._frame_num_bits = _frame_num_bits(bytes(data[start:end]))
        return Picture(clean=False)

    def _has_gap(self, slice_header: bytes, is_leaf: bool) -> bool:
        """Does frame_num skip a reference picture (7.4.3)?"""
        if self._frame_num_bits is None:
            return False
        try:
            bits = Bits(unescaped(slice_header))
            for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
                bits.ue()
            frame_num = bits.u(self._frame_num_bits)
        except EOFError:
            return False
        last = self._last_frame_num
        if not is_leaf:
            self._last_frame_num = frame_num
        # 0 and 1 may also follow a picture that resets the numbering without being an IDR (its operation 5).
        return last is not None and frame_num not in (last, (last + 1) % (1 << self._frame_num_bits), 0, 1)


def _avcc_parameter_sets(extradata: bytes) -> Iterator[bytes]:
    """The sequence parameter sets of an AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1)."""
    at = 6
    for _ in range(extradata[5] & 31):
        size = int.from_bytes(extradata[at : at + 2], "big")
        yield extradata[at + 2 : at + 2 + size]
        at += 2 + size


def _frame_num_bits(sps: bytes) -> int | None:
    """Length of frame_num in slice headers; None where gaps are allowed or the set cannot be read."""
    try:
        bits = Bits(unescaped(sps[1:]))
        profile = bits.u(8)
        bits.u(16)
        bits.ue()
        if profile in HIGH_PROFILES:
            chroma_format = bits.ue()
            if chroma_format == 3 and bits.u(1):
                return None  # separate colour planes put two more bits before frame_num
            bits.ue()
            bits.ue()
            bits.u(1)
            if bits.u(1):
                for number in range(12 if chroma_format == 3 else 8):
                    if bits.u(1):
                        _skip_scaling_list(bits, 16 if number < 6 else 64)
        frame_num_bits = bits.ue() + 4
        order_type = bits.ue()
        if order_type == 0:
            bits.ue()
        elif order_type == 1:
            bits.u(1)
            bits.se()
            bits.se()
            for _ in range(bits.ue()):
                bits.se()
        bits.ue()
        allows_gaps = bits.u(1)
    except EOFError:
        return None
    return None if allows_gaps or frame_num_bits > 16 else frame_num_bits


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _recovers_at_once(sei: bytes) -> bool:
    """Does this SEI hold a recovery point with frame count 0, exact match and no broken link?

    x264's intra refresh marks "keyframes" whose recovery point lies frames ahead: those are no place to start.
    """
    sei = unescaped(sei)
    at = 0
    while at + 2 < len(sei):
        numbers = []
        for _ in range(2):
            number = 0
            while at < len(sei) and sei[at] == 255:
                number += 255
                at += 1
            if at >= len(sei):
                return False
            numbers.append(number + sei[at])
            at += 1
        kind, size = numbers
        if kind == 6:
            # ue(v) recovery_frame_cnt = 0 is the bit 1; then exact_match_flag = 1, broken_link_flag = 0.
            return at < len(sei) and sei[at] & 0b1110_0000 == 0b1100_0000
        at += size
    return False
