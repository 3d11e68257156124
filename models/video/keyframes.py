"""The nearest keyframes instead of the wanted frames: real pictures, a fraction of the work, shifted in time."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from models.video.container import OpenVideo
from models.video.frames import Frame
from models.video.order import OrderUnknown
from models.video.picture import Developer
from models.video.selective import Coded, Damage, PacketWindow, decode_stretch


def decode_keyframes(video: OpenVideo, wanted: Sequence[int], developer: Developer) -> tuple[list[Frame], int]:
    """The clean starts nearest to the wanted frames, each once, and the number of pictures read.

    A frame's shift is its index minus the nearest of the wanted indices that it stands for. Ties go to the earlier
    keyframe.

    Raises:
        OrderUnknown: the packets do not tell the order; decode exactly instead.
    """
    window = PacketWindow(video)
    due = deque(wanted)
    chosen: dict[int, int] = {}
    frames: list[Frame] = []
    previous: tuple[int, Coded] | None = None

    def choose(index: int) -> None:
        shift = index - due.popleft()
        if index not in chosen or abs(shift) < abs(chosen[index]):
            chosen[index] = shift

    def develop(key: tuple[int, Coded]) -> None:
        index, coded = key
        if index not in chosen:
            return
        try:
            made = decode_stretch(video, [coded], {index: coded}, developer, window.reader)
        except (Damage, OrderUnknown):
            return  # a broken keyframe is no frame
        frames.extend(replace(frame, shift=chosen[index]) for frame in made)

    for index, coded in window.settled():
        if coded.picture.clean:
            while due and previous is not None and due[0] - previous[0] <= index - due[0]:
                choose(previous[0])
            if previous is not None:
                develop(previous)
            while due and due[0] <= index:
                choose(index)
            previous = (index, coded)
            window.forget_before(coded)
        elif previous is not None:
            # No later keyframe can be nearer than this one is.
            while due and due[0] - previous[0] <= index - due[0]:
                choose(previous[0])
        if not due:
            break
    while due and previous is not None and due[0] < window.num_shown:
        choose(previous[0])
    if previous is not None:
        develop(previous)
    return frames, window.num_shown
