"""The bytes between a sandbox and its child process: a JSON header and raw pixels, nothing that runs code."""

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

LENGTHS = struct.Struct("<IQ")
MAX_HEADER_BYTES = 64 << 20
READY = "ready"


class FrameHeader(BaseModel):
    """A frame without its pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(gt=0, description="pixels")
    width: int = Field(gt=0, description="pixels")
    index: int = Field(ge=0, description="frame number")
    pts_s: float | None = Field(description="presentation time, seconds; None stands for nan")
    damaged: bool = Field(description="decoded with errors")
    shift: int = Field(description="index minus wanted index")

    @property
    def num_bytes(self) -> int:
        """Bytes of its pixels."""
        return self.height * self.width * 3


class Answer(BaseModel):
    """What the child answers: frames and the object's stat, or an error by its class name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: str | None = Field(None, description="class name of the typed error")
    message: str = Field("", description="message of the error")
    frames: tuple[FrameHeader, ...] = Field((), description="frames, whose pixels follow in this order")
    width: int = Field(0, ge=0, description="source width, pixels")
    height: int = Field(0, ge=0, description="source height, pixels")
    duration_s: float | None = Field(None, description="seconds")
    codec: str = Field("", description="FFmpeg's name of the codec")
    size_bytes: int = Field(0, ge=0, description="size of the object")
    etag: str = Field("", description="etag of the object")
    fetched_bytes: int = Field(0, ge=0, description="bytes read of the object")
    sha256: str | None = Field(None, description="digest of the object's bytes, where asked for")


def send(connection: socket.socket, header: Any, payloads: Sequence[memoryview] = ()) -> None:
    """Send a header (JSON values) and the bytes that belong to it."""
    encoded = json.dumps(header).encode()
    connection.sendall(LENGTHS.pack(len(encoded), sum(payload.nbytes for payload in payloads)) + encoded)
    for payload in payloads:
        connection.sendall(payload)


def receive(connection: socket.socket, *, max_bytes: int = 0, deadline_s: float | None = None) -> tuple[Any, bytearray]:
    """Receive a header and its bytes.

    Args:
        connection: a connected stream socket.
        max_bytes: most bytes that may follow the header.
        deadline_s: `time.monotonic` at which to give up; None waits without end.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: the deadline has passed.
        ValueError: what came is no message.
    """
    num_header_bytes, num_payload_bytes = LENGTHS.unpack(_exactly(connection, LENGTHS.size, deadline_s))
    if num_header_bytes > MAX_HEADER_BYTES or num_payload_bytes > max_bytes:
        raise ValueError(f"a message of {num_header_bytes} + {num_payload_bytes} bytes")
    header = json.loads(_exactly(connection, num_header_bytes, deadline_s))
    return header, _exactly(connection, num_payload_bytes, deadline_s)


def _exactly(connection: socket.socket, num_bytes: int, deadline_s: float | None) -> bytearray:
    data = bytearray(num_bytes)
    left = memoryview(data)
    while left:
        if deadline_s is not None:
            connection.settimeout(max(deadline_s - time.monotonic(), 1e-3))
        try:
            num_received = connection.recv_into(left)
        except ConnectionResetError:
            num_received = 0
        if num_received == 0:
            raise EOFError("the other side has closed the connection")
        left = left[num_received:]
    return data
