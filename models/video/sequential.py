"""Frames by decoding everything up to the last wanted one: where packets do not tell the order, and where damage is."""

import math
from collections.abc import Sequence

import av
from av.packet import Packet
from av.video.stream import VideoStream

from models.video.bitstream import packet_reader
from models.video.container import OpenVideo, raise_if_memory
from models.video.frames import Frame
from models.video.nal import HOLE, Picture
from models.video.order import MAX_REORDER, OrderUnknown
from models.video.picture import Developer
from models.video.selective import PacketWindow


def find_targets(video: OpenVideo, wanted: Sequence[int]) -> tuple[dict[int, int], int]:
    """The wanted frame numbers by pts, and the number of pictures read; decodes nothing.

    Raises:
        OrderUnknown: the packets do not tell the order.
    """
    window = PacketWindow(video)
    targets: dict[int, int] = {}
    numbers = set(wanted)
    for index, coded in window.settled():
        if coded.picture.clean:
            window.forget_before(coded)
        if index in numbers:
            targets[coded.pts] = index
        if index >= wanted[-1]:
            break
    return targets, window.num_shown


def decode_all(
    video: OpenVideo, wanted: Sequence[int], targets: dict[int, int] | None, developer: Developer
) -> tuple[list[Frame], int]:
    """Decode from the first packet on; the wanted frames, and the number of pictures decoded.

    Args:
        video: the open video, nothing read yet.
        wanted: frame numbers, increasing.
        targets: frame numbers by pts; None: count the decoded pictures.
        developer: makes frames.
    """
    damage = _DamageTracker(video)
    numbers = set(wanted)
    frames: dict[int, Frame] = {}
    count = 0

    def take(pictures: list[av.VideoFrame]) -> bool:
        """Develop the wanted ones of these pictures; True once none is left to come."""
        nonlocal count
        for picture in pictures:
            index = count
            if targets is not None:
                index = -1 if picture.pts is None else targets.get(picture.pts, -1)
            count += 1
            is_damaged = damage.of(picture)
            if index in numbers and index not in frames:
                pts_s = video.seconds(picture.pts) if picture.pts is not None else _counted_s(video, index)
                frames[index] = developer.frame(picture, index, pts_s, damaged=is_damaged)
        return len(frames) == len(numbers)

    # A wanted picture that damage has wiped out will not come: no later packet can bring it.
    num_enough = wanted[-1] + 1 + MAX_REORDER if targets is not None else None
    num_shown = 0
    is_done = False
    for packet, follows_loss in video.packets():
        damage.before(packet, follows_loss)
        is_done = take(_decode(video, packet, damage))
        num_shown += not packet.is_discard
        if is_done or num_shown == num_enough:
            break
    if not is_done:
        take(_decode(video, None, damage))
    return [frames[index] for index in sorted(frames)], count


def _decode(video: OpenVideo, packet: "Packet[VideoStream] | None", damage: "_DamageTracker") -> list[av.VideoFrame]:
    video.clock.check()
    pictures: list[av.VideoFrame] = []
    has_failed = False
    try:
        pictures = video.codec.decode(packet)
    except av.FFmpegError as error:
        raise_if_memory(error, video.name)
        has_failed = True
    if video.take_errors() or has_failed:
        damage.error_at(packet)
    return pictures


def _counted_s(video: OpenVideo, index: int) -> float:
    rate = video.stream.average_rate
    return float(index / rate) if rate else math.nan


class _DamageTracker:
    """Which pictures are damaged: those after an error, until the next clean start.

    Pictures leave the decoder later than their packets enter, so the marks wait here by pts.
    """

    def __init__(self, video: OpenVideo) -> None:
        self._reader = packet_reader(video.codec_name, video.codec.extradata)
        self._is_suspect = False
        self._marks: dict[int, bool] = {}
        self._pictures_left = 0

    def before(self, packet: "Packet[VideoStream]", follows_loss: bool) -> None:
        """Note a packet about to be decoded."""
        picture, has_hole = self._read(packet)
        is_broken = packet.is_corrupt or has_hole
        follows_loss = follows_loss or picture.follows_loss
        if picture.clean:
            self._is_suspect = is_broken
        elif not picture.is_leaf:
            self._is_suspect |= follows_loss or is_broken
        self._mark(packet, self._is_suspect or follows_loss or is_broken)

    def error_at(self, packet: "Packet[VideoStream] | None") -> None:
        """Note that decoding this packet (None: draining) met an error."""
        self._is_suspect = True
        if packet is not None:
            self._mark(packet, True)

    def of(self, picture: av.VideoFrame) -> bool:
        """Is this decoded picture damaged?"""
        is_recent = self._pictures_left > 0
        self._pictures_left = MAX_REORDER if self._is_suspect else max(0, self._pictures_left - 1)
        if picture.is_corrupt:
            return True
        if picture.pts is None or picture.pts not in self._marks:
            return self._is_suspect or is_recent
        return self._marks.pop(picture.pts)

    def _mark(self, packet: "Packet[VideoStream]", is_damaged: bool) -> None:
        if packet.pts is None:
            return
        if len(self._marks) >= 4 * MAX_REORDER:
            self._marks.pop(next(iter(self._marks)))
        self._marks[packet.pts] = is_damaged

    def _read(self, packet: "Packet[VideoStream]") -> tuple[Picture, bool]:
        reader = self._reader
        if reader is None:
            return Picture(clean=packet.is_keyframe), False
        try:
            picture = reader.picture(memoryview(packet), packet.is_keyframe)
        except OrderUnknown:
            picture = Picture(clean=False)
        return picture, reader.has_escapes and HOLE in bytes(packet)
