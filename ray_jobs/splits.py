"""Which side of the split a crop stands on: by a stable hash of its creator, video or image, five to one."""

import hashlib
from typing import Literal

SplitBy = Literal["creator", "video", "image"]


def split_of(by: SplitBy, *, creator_id: str | None, video_id: str, frame_index: int | None) -> str:
    """``train`` or ``val``. A video without a creator counts as its own; `image` lets frames of a video part."""
    keys = {"creator": creator_id or video_id, "video": video_id, "image": f"{video_id}#{frame_index}"}
    return "val" if is_validation(keys[by]) else "train"


def is_validation(key: str, one_in: int = 6) -> bool:
    """Whether a key is on the validation side: a stable hash, so a key never changes sides (5:1)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % one_in == 0
