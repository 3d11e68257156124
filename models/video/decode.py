"""Exactly the wanted frames of a video or image: the one door to decoding."""

from collections.abc import Sequence
from typing import BinaryIO

from models.video.container import OpenVideo, check_bytes, open_video
from models.video.errors import Corrupt, Truncated
from models.video.frames import Frame, SampledFrames
from models.video.keyframes import decode_keyframes
from models.video.limits import CpuClock, DecodeLimits
from models.video.order import OrderUnknown
from models.video.picture import Developer
from models.video.sampling import FramePolicy
from models.video.selective import Damage, decode_exact
from models.video.sequential import decode_all, find_targets
from models.video.stills import decode_still, is_still


def decode_frames(source: BinaryIO, policy: FramePolicy, limits: DecodeLimits, *, name: str) -> SampledFrames:
    """Decode the frames that the policy wants.

    Frame ``k`` is the k-th picture that a full decode yields. A wanted frame beyond the end of a healthy video is
    absent. In a damaged file, frames are found by their pts; those that an error touches are marked ``damaged``.

    Args:
        source: seekable binary file object; read from its start, left open.
        policy: which frames, what size.
        limits: what the video may cost; ``max_wall_s`` and ``max_memory_bytes`` are held by `DecodeSandbox` alone.
        name: what messages call the video.

    Raises:
        VideoError: a subclass that names the reason.
        TypedError: whatever the source raised.
    """
    check_bytes(source, limits, name)
    if is_still(source):
        return decode_still(source, policy, limits, name)
    clock = CpuClock(limits.max_cpu_s, name)
    wanted = policy.wanted()
    developer = Developer(policy.short_side, limits, name)
    by_packets = decode_keyframes if policy.mode == "keyframe" else decode_exact
    try:
        with open_video(source, limits, clock, name) as video:
            frames, num_pictures = by_packets(video, wanted, developer)
            return _sampled(video, frames, wanted, num_pictures, developer)
    except OrderUnknown:
        targets = None
    except Damage:
        targets = _targets(source, wanted, limits, clock, name)
    with open_video(source, limits, clock, name) as video:
        frames, num_pictures = decode_all(video, wanted, targets[0] if targets else None, developer)
        return _sampled(video, frames, wanted, max(num_pictures, targets[1] if targets else 0), developer)


def _targets(
    source: BinaryIO, wanted: Sequence[int], limits: DecodeLimits, clock: CpuClock, name: str
) -> tuple[dict[int, int], int] | None:
    with open_video(source, limits, clock, name) as video:
        try:
            return find_targets(video, wanted)
        except OrderUnknown:
            return None


def _sampled(
    video: OpenVideo, frames: list[Frame], wanted: Sequence[int], num_pictures: int, developer: Developer
) -> SampledFrames:
    """The result, unless the file ends before a wanted frame that it says it holds, or nothing of it decodes."""
    missing = [index for index in wanted if index >= num_pictures]
    if video.ends_early and missing and (video.num_expected == 0 or missing[0] < video.num_expected):
        raise Truncated(f"{video.name}: the file ends after {num_pictures} pictures, before frame {missing[0]}")
    if not frames and (num_pictures == 0 or len(missing) < len(wanted)):
        raise Corrupt(f"{video.name}: nothing of it could be decoded")
    width, height = developer.size or (video.codec.width, video.codec.height)
    return SampledFrames(
        tuple(sorted(frames, key=lambda frame: frame.index)), width, height, video.duration_s, video.codec_name
    )
