"""Why a video could not be decoded: one class a reason, as it stands in the quarantine table."""

from typing import ClassVar

from infra.errors import TypedError


class VideoError(TypedError):
    """A failure that belongs to one video; subclasses name the reason."""

    reason: ClassVar[str] = "video_error"


class NotMedia(VideoError):
    """The bytes are no video or image: empty, text, or a format that is not read."""

    reason: ClassVar[str] = "not_media"


class NoVideoStream(VideoError):
    """A media file without moving pictures: audio alone, or audio with cover art."""

    reason: ClassVar[str] = "no_video_stream"


class Truncated(VideoError):
    """The file ends before pictures that it says it holds."""

    reason: ClassVar[str] = "truncated"


class Corrupt(VideoError):
    """A media file of which nothing could be decoded."""

    reason: ClassVar[str] = "corrupt"


class UnsupportedCodec(VideoError):
    """The video stream's codec has no decoder here."""

    reason: ClassVar[str] = "unsupported_codec"


class TooLarge(VideoError):
    """The file has more bytes than the limit."""

    reason: ClassVar[str] = "too_large"


class TooManyPixels(VideoError):
    """A picture has more pixels than the limit."""

    reason: ClassVar[str] = "too_many_pixels"


class TooLong(VideoError):
    """The video lasts longer than the limit."""

    reason: ClassVar[str] = "too_long"


class DecodeTimeout(VideoError):
    """Decoding used up its CPU seconds, or did not answer within its wall-clock seconds."""

    reason: ClassVar[str] = "timeout"


class OutOfMemory(VideoError):
    """Decoding needed more memory than the limit."""

    reason: ClassVar[str] = "out_of_memory"


class DecoderCrashed(VideoError):
    """The process that decoded the video died, or failed in a way that has no other name."""

    reason: ClassVar[str] = "decoder_crashed"
