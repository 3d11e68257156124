"""AV1 packets (temporal units): clean starts, and pictures that no other refers to.

Reference: AV1 Bitstream & Decoding Process Specification, 5.3 (OBUs), 5.5 (sequence header), 5.9.2 (frame header). A
frame leaves something behind only in the reference slots that its refresh_frame_flags name, contexts included.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from models.video.nal import Bits, Picture

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6
KEY, INTRA_ONLY, SWITCH = 0, 2, 3
SELECT = 2  # the sequence leaves the choice to each frame
HEADER_BYTES = 64


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What a sequence header says about the frame headers."""

    screen_content_tools: int
    integer_mv: int
    frame_id_bits: int
    order_hint_bits: int


class Av1Reader:
    """Reads packets in decode order; remembers the last sequence header."""

    def __init__(self, extradata: bytes) -> None:
        self._sequence: _Sequence | None = None
        for kind, payload, _ in _obus(memoryview(extradata)[4:]):  # av1C: four bytes, then OBUs
            if kind == SEQUENCE_HEADER:
                self._sequence = _read_sequence(payload)

    def __call__(self, data: memoryview, key: bool) -> Picture:
        """What the packet says about its picture."""
        has_sequence = is_clean = False
        num_frames = num_leaves = 0
        for kind, payload, is_layered in _obus(data):
            if kind == SEQUENCE_HEADER:
                self._sequence = _read_sequence(payload)
                has_sequence = True
            elif kind in (FRAME_HEADER, FRAME) and payload:
                if num_frames == 0:
                    # show_existing_frame = 0, frame_type = KEY_FRAME, show_frame = 1
                    is_clean = key and has_sequence and payload[0] & 0b1111_0000 == 0b0001_0000
                num_frames += 1
                num_leaves += not is_layered and self._sequence is not None and _is_leaf(payload, self._sequence)
        return Picture(clean=is_clean, is_leaf=num_frames > 0 and num_leaves == num_frames)


def _obus(data: memoryview) -> Iterator[tuple[int, bytes, bool]]:
    """(type, first bytes of the payload, has a layer extension) of each OBU."""
    at = 0
    while at < len(data):
        kind, has_extension, has_size = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + has_extension
        size = len(data) - at
        if has_size:
            size = shift = 0
            while at < len(data):
                byte = data[at]
                size |= (byte & 127) << shift
                shift += 7
                at += 1
                if byte < 128:
                    break
        yield kind, bytes(data[at : at + min(size, HEADER_BYTES)]), bool(has_extension)
        at += size


def _read_sequence(payload: bytes) -> _Sequence | None:
    """The sequence header; None for the rare kinds whose frame headers are not looked into."""
    try:
        bits = Bits(payload)
        bits.u(4)  # seq_profile, still_picture
        if bits.u(1):
            return None  # reduced_still_picture_header
        if bits.u(1):
            bits.u(64)  # num_units_in_display_tick, time_scale
            if bits.u(1):
                bits.ue()  # num_ticks_per_picture_minus_1; uvlc() is Exp-Golomb
            if bits.u(1):
                return None  # decoder_model_info
        has_display_delay = bits.u(1)
        for _ in range(bits.u(5) + 1):
            bits.u(12)
            if bits.u(5) > 7:
                bits.u(1)
            if has_display_delay and bits.u(1):
                bits.u(4)
        width_bits, height_bits = bits.u(4) + 1, bits.u(4) + 1
        bits.u(width_bits)
        bits.u(height_bits)
        frame_id_bits = 0
        if bits.u(1):
            frame_id_bits = bits.u(4) + 2
            frame_id_bits += bits.u(3) + 1
        bits.u(3 + 4)  # superblocks, filter_intra, intra_edge; interintra, masked, warped, dual_filter
        has_order_hint = bits.u(1)
        if has_order_hint:
            bits.u(2)
        screen_content_tools = SELECT if bits.u(1) else bits.u(1)
        integer_mv = SELECT
        if screen_content_tools:
            integer_mv = SELECT if bits.u(1) else bits.u(1)
        order_hint_bits = bits.u(3) + 1 if has_order_hint else 0
    except EOFError:
        return None
    return _Sequence(screen_content_tools, integer_mv, frame_id_bits, order_hint_bits)


def _is_leaf(payload: bytes, sequence: _Sequence) -> bool:
    """Is this frame stored in no reference slot (refresh_frame_flags = 0)?"""
    try:
        bits = Bits(payload)
        if bits.u(1):
            return False  # shows a frame that is already there: costs nothing, and a key frame would be stored again
        frame_type, is_shown = bits.u(2), bits.u(1)
        if not is_shown:
            bits.u(1)
        if frame_type == SWITCH or (frame_type == KEY and is_shown):
            return False
        is_resilient = bits.u(1)
        bits.u(1)  # disable_cdf_update
        tools = sequence.screen_content_tools
        if tools == SELECT:
            tools = bits.u(1)
        if tools and sequence.integer_mv == SELECT:
            bits.u(1)
        bits.u(sequence.frame_id_bits)
        bits.u(1)  # frame_size_override_flag
        bits.u(sequence.order_hint_bits)
        if frame_type not in (KEY, INTRA_ONLY) and not is_resilient:
            bits.u(3)  # primary_ref_frame
        return bits.u(8) == 0
    except EOFError:
        return False
