"""Exactly the wanted frames, decoding only the pictures that they need.

One pass over the compressed packets settles which picture is frame k. A wanted picture is decoded from the last clean
start before it; pictures on the way that no other refers to are left out. Packets are kept only from the last clean
start that a wanted picture may still need, so that memory does not grow with the length of the video::

    packets   I p b p b p | I p b p b p | I p b p b p | ...        | clean start, b: no other picture refers to it
    wanted            ^            ^
    decoded   I p   p b     I p   p b                              (flushed in between)
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import av
from av.packet import Packet
from av.video.stream import VideoStream

from models.video.bitstream import PacketReader, packet_reader
from models.video.container import OpenVideo, raise_if_memory
from models.video.frames import Frame
from models.video.nal import HOLE, Picture
from models.video.order import OrderUnknown, PresentationOrder
from models.video.picture import Developer

# Elsewhere timestamps are no presentation times (AVI), or are guessed.
TIMED_FORMATS = ("mov", "matroska", "mpegts", "flv", "ivf")
MAX_KEPT_BYTES = 128 << 20


class Damage(Exception):
    """A decoded stretch is damaged: what decoders show there depends on everything before it."""


class Coded:
    """One shown or hidden picture as its packet."""

    __slots__ = ("follows_loss", "number", "packet", "picture", "pts")

    def __init__(self, number: int, packet: "Packet[VideoStream]", picture: Picture, follows_loss: bool) -> None:
        assert packet.pts is not None
        self.number = number
        self.packet = packet
        self.pts: int = packet.pts
        self.picture = picture
        self.follows_loss = follows_loss or picture.follows_loss


class PacketWindow:
    """The packets that wanted pictures may still need, in decode order; numbers them in presentation order."""

    def __init__(self, video: OpenVideo) -> None:
        self._video = video
        self._reader = _reader(video)
        self._kept: deque[Coded] = deque()
        self._kept_bytes = 0
        self._order: PresentationOrder[Coded] = PresentationOrder()

    @property
    def reader(self) -> PacketReader:
        """The reader of the stream's packets."""
        return self._reader

    @property
    def num_shown(self) -> int:
        """How many shown pictures have been read."""
        return self._order.num_pushed

    def settled(self) -> Iterator[tuple[int, Coded]]:
        """Read packets; yield (frame number, picture) in presentation order, each once it is certain.

        Raises:
            OrderUnknown: the packets do not tell the order.
        """
        first_pts: int | None = None
        for number, (packet, follows_loss) in enumerate(self._video.packets()):
            pts = packet.pts
            if pts is None:
                raise OrderUnknown("a packet without pts")
            coded = Coded(number, packet, self._reader.picture(memoryview(packet), packet.is_keyframe), follows_loss)
            if first_pts is None:
                first_pts = pts
                if not coded.picture.clean:
                    raise OrderUnknown("the first packet is no clean start")
            elif pts < first_pts:
                raise OrderUnknown("pictures before the first clean start")
            self._kept.append(coded)
            self._kept_bytes += packet.size
            if self._kept_bytes > MAX_KEPT_BYTES:
                raise OrderUnknown("too many bytes between clean starts")
            if not packet.is_discard:
                yield from self._order.push(pts, coded)
        yield from self._order.flush()

    def start_of(self, target: Coded) -> Coded:
        """The last clean start that the target follows in decode and presentation order."""
        for coded in reversed(self._kept):
            if coded.number <= target.number and coded.pts <= target.pts and coded.picture.clean:
                return coded
        raise OrderUnknown("a picture that follows no clean start")

    def stretch(self, start: Coded, last: Coded) -> list[Coded]:
        """The kept pictures from ``start`` to ``last`` in decode order, both included."""
        offset = self._kept[0].number
        return list(islice(self._kept, start.number - offset, last.number - offset + 1))

    def forget_before(self, start: Coded) -> None:
        """Drop the packets before a clean start."""
        while self._kept[0].number < start.number:
            self._kept_bytes -= self._kept.popleft().packet.size


def _reader(video: OpenVideo) -> PacketReader:
    reader = packet_reader(video.codec_name, video.codec.extradata)
    if reader is None or not video.container.format.name.startswith(TIMED_FORMATS):
        raise OrderUnknown(f"{video.codec_name} in {video.container.format.name}")
    if video.codec.field_order > 1:
        raise OrderUnknown("interlaced: a packet may hold one field of a frame")
    return reader


def decode_exact(video: OpenVideo, wanted: Sequence[int], developer: Developer) -> tuple[list[Frame], int]:
    """The wanted frames, and the number of pictures read (all of them where a wanted frame is beyond the end).

    Raises:
        OrderUnknown: count frames instead.
        Damage: a wanted frame depends on damaged data.
    """
    window = PacketWindow(video)
    due = deque(wanted)
    groups: dict[int, list[tuple[int, Coded]]] = {}
    frames: list[Frame] = []
    for index, coded in window.settled():
        if coded.picture.clean:
            # Every later picture starts here or later: decode what waits, and let go of the packets before.
            frames += _decode_groups(video, window, groups, developer)
            window.forget_before(coded)
        if index == due[0]:
            groups.setdefault(window.start_of(coded).number, []).append((index, coded))
            due.popleft()
            if not due:
                break
    frames += _decode_groups(video, window, groups, developer)
    return frames, window.num_shown


def _decode_groups(
    video: OpenVideo, window: PacketWindow, groups: dict[int, list[tuple[int, Coded]]], developer: Developer
) -> list[Frame]:
    """Decode and clear the waiting targets, grouped by the clean start that they are decoded from."""
    frames: list[Frame] = []
    for targets in groups.values():
        start = window.start_of(targets[0][1])
        last = max((coded for _, coded in targets), key=lambda coded: coded.number)
        frames += decode_stretch(video, window.stretch(start, last), dict(targets), developer, window.reader)
    groups.clear()
    return frames


def decode_stretch(
    video: OpenVideo, stretch: list[Coded], targets: dict[int, Coded], developer: Developer, reader: PacketReader
) -> list[Frame]:
    """Decode from a clean start to the last target, and develop the targets (frame number -> picture).

    Raises:
        Damage: an error, a damaged picture, or a target without one.
        OrderUnknown: a packet gave no picture, without an error.
    """
    start = stretch[0]
    top_layer = max(coded.picture.layer for coded in stretch)
    numbers = {coded.pts: index for index, coded in targets.items()}
    expected: set[int] = set()
    frames: list[Frame] = []

    def take(pictures: list[av.VideoFrame], is_leading: bool) -> None:
        for picture in pictures:
            if picture.pts is None or picture.pts < start.pts:
                continue
            if picture.is_corrupt and not is_leading:
                raise Damage(f"damaged picture at pts {picture.pts}")
            expected.discard(picture.pts)
            if picture.pts in numbers:
                frames.append(developer.frame(picture, numbers.pop(picture.pts), video.seconds(picture.pts)))

    for coded in stretch:
        if coded.follows_loss and coded is not start:
            raise Damage("packets were lost")
        is_leaf = coded.picture.is_leaf and coded.picture.layer == top_layer
        if is_leaf and coded.pts not in numbers:
            continue
        if coded.packet.is_corrupt or (reader.has_escapes and HOLE in bytes(coded.packet)):
            raise Damage("a packet is damaged")
        # Leading pictures of an open GOP refer to the GOP before: what they give is of no use here, but the decoder
        # has to see those that others refer to.
        is_leading = coded.pts < start.pts
        if not is_leading and not coded.packet.is_discard:
            expected.add(coded.pts)
        take(_decode(video, coded.packet, is_leading), is_leading)
    take(_decode(video, None, False), False)
    video.codec.flush_buffers()
    video.codec.reorder_depth = video.reorder_depth
    if numbers or expected:
        raise OrderUnknown("a packet gave no picture")
    return frames


def _decode(video: OpenVideo, packet: "Packet[VideoStream] | None", is_leading: bool) -> list[av.VideoFrame]:
    video.clock.check()
    try:
        pictures = video.codec.decode(packet)
    except av.FFmpegError as error:
        raise_if_memory(error, video.name)
        video.take_errors()
        if is_leading:
            return []
        raise Damage(str(error)) from error
    if video.take_errors() and not is_leading:
        raise Damage("the decoder reported errors")
    return pictures
