"""Hostile and broken requests: each is answered with the right status and code, and the service stays up."""

import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.serving import FakeJobs, Service, running_service

IMAGES, VIDEOS, BATCHES = "/v1/images:score", "/v1/videos:score", "/v1/batches"
INFER = "/v2/models/fs2k/infer"


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def photo(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


JPEG, PNG = encoded(photo(), "JPEG"), encoded(photo(), "PNG")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that unpacks to ``width × height`` pixels."""
    rows = zlib.compressobj(9)
    packed = b"".join([rows.compress(b"\x00" * (width // 8 + 1)) for _ in range(height)] + [rows.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def text_bomb_png() -> bytes:
    """A PNG whose compressed text chunk unpacks to 100 MB."""
    text = png_chunk(b"zTXt", b"a\x00\x00" + zlib.compress(b"\x00" * 100_000_000, 9))
    return PNG[:33] + text + PNG[33:]


def tagged(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(), "JPEG", exif=exif)


def animated(format_: str) -> bytes:
    frames = [photo(), photo("L").convert("RGB")]
    return encoded(frames[0], format_, save_all=True, append_images=frames[1:], duration=100)


def multipart(name: str, filename: str, data: bytes, boundary: str = "x") -> tuple[bytes, dict[str, str]]:
    body = (
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        ).encode()
        + data
        + f"\r\n--{boundary}--\r\n".encode()
    )
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


@dataclass(frozen=True)
class Hostile:
    name: str
    status: int
    code: str
    path: str = IMAGES
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


def form(name: str, status: int, code: str, *args: Any) -> Hostile:
    body, headers = multipart(*args)
    return Hostile(name, status, code, IMAGES, body, headers)


def infer(name: str, code: str, body: Any, **headers: str) -> Hostile:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Hostile(name, 400, code, INFER, content, headers)


def tensor(**changes: Any) -> dict[str, Any]:
    one = {"name": "crops", "shape": [1, 40, 40, 3], "datatype": "UINT8", "data": [0] * 4800}
    return {"inputs": [one | changes]}


ZIP = b"PK\x03\x04" + b"\x00" * 200
GOOD = "ok"  # no error: hostile at first sight, and read all the same
CASES = [
    # What is no picture at all.
    Hostile("nothing", 422, "no_source"),
    Hostile("empty body", 422, "no_source", content=b""),
    Hostile("text", 415, "not_an_image", content=b"hello"),
    Hostile("html", 415, "not_an_image", content=b"<html><script>alert(1)</script></html>"),
    Hostile("svg that asks for a url", 415, "not_an_image", content=b'<svg><image href="http://10.0.0.1/"/></svg>'),
    Hostile("json", 415, "not_an_image", content=b'{"uri": "s3://bucket/key"}'),
    Hostile("zip", 415, "not_an_image", content=ZIP),
    Hostile("gzip", 415, "not_an_image", content=b"\x1f\x8b\x08" + b"\x00" * 100),
    Hostile("program", 415, "not_an_image", content=b"\x7fELF" + b"\x00" * 100),
    Hostile("one byte", 415, "not_an_image", content=b"\xff"),
    Hostile("gif", 415, "not_an_image", content=encoded(photo("P"), "GIF")),
    Hostile("animated gif", 415, "not_an_image", content=animated("GIF")),
    Hostile("bmp", 415, "not_an_image", content=encoded(photo(), "BMP")),
    Hostile("tiff", 415, "not_an_image", content=encoded(photo(), "TIFF")),
    Hostile("postscript", 415, "not_an_image", content=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"),
    Hostile("text as a video", 415, "not_media", path=VIDEOS, content=b"hello" * 100),
    Hostile("zeros as a video", 415, "not_media", path=VIDEOS, content=bytes(10_000)),
    Hostile("picture as a video", 415, "not_a_video", path=VIDEOS, content=JPEG),
    Hostile(
        "playlist that names files", 415, "not_media", path=VIDEOS, content=b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    ),
    Hostile("concat script", 415, "not_media", path=VIDEOS, content=b"ffconcat version 1.0\nfile /etc/passwd\n"),
    # Broken pictures.
    Hostile("jpeg: head alone", 422, "corrupt", content=JPEG[:4]),
    Hostile("jpeg: cut in the middle", 422, "truncated", content=JPEG[: len(JPEG) // 2]),
    Hostile("png: cut in the middle", 422, "truncated", content=PNG[: len(PNG) // 2]),
    Hostile("png: signature alone", 422, "corrupt", content=PNG[:8]),
    Hostile("png: wrong checksum", 422, "corrupt", content=PNG[:45] + b"\xff\xff\xff\xff" + PNG[49:]),
    Hostile("png: no pixels", 422, "corrupt", content=PNG[:33] + png_chunk(b"IEND", b"")),
    Hostile("webp: head alone", 422, "corrupt", content=b"RIFF\x20\x00\x00\x00WEBPVP8 "),
    Hostile(
        "random behind a jpeg's head", 422, "truncated", content=b"\xff\xd8\xff" + np.random.default_rng(1).bytes(5_000)
    ),
    # Bombs.
    Hostile("100 megapixels in kilobytes", 413, "too_many_pixels", content=bomb_png(10_000, 10_000)),
    Hostile("a gigapixel in kilobytes", 413, "too_many_pixels", content=bomb_png(60_000, 20_000)),
    Hostile("a line of 60 megapixels", 413, "too_many_pixels", content=bomb_png(60_000_000, 1)),
    Hostile("compressed text of 100 MB", 422, "corrupt", content=text_bomb_png()),
    Hostile("body larger than allowed", 413, "body_too_large", content=b"\xff\xd8\xff" + bytes(3 << 20)),
    form("form larger than allowed", 413, "body_too_large", "file", "a.jpg", b"\xff\xd8\xff" + bytes(3 << 20)),
    # Unusual pictures, which are read.
    Hostile("cmyk", 200, GOOD, content=encoded(photo("CMYK"), "JPEG")),
    Hostile("grey", 200, GOOD, content=encoded(photo("L"), "JPEG")),
    Hostile("alpha", 200, GOOD, content=encoded(photo("RGBA"), "PNG")),
    Hostile("palette", 200, GOOD, content=encoded(photo("P"), "PNG")),
    Hostile("one bit", 200, GOOD, content=encoded(photo("1"), "PNG")),
    Hostile(
        "16 bit",
        200,
        GOOD,
        content=encoded(Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)), "PNG"),
    ),
    Hostile("one pixel", 200, GOOD, content=encoded(photo(size=(1, 1)), "PNG")),
    Hostile("a line", 200, GOOD, content=encoded(photo(size=(4_000, 1)), "PNG")),
    Hostile("progressive", 200, GOOD, content=encoded(photo(), "JPEG", progressive=True)),
    Hostile("turned by its tag", 200, GOOD, content=tagged(6)),
    Hostile("mirrored by its tag", 200, GOOD, content=tagged(5)),
    Hostile("a tag that does not exist", 200, GOOD, content=tagged(99)),
    Hostile("animated png", 200, GOOD, content=animated("PNG")),
    Hostile("animated webp", 200, GOOD, content=animated("WEBP")),
    Hostile("polyglot: jpeg and zip", 200, GOOD, content=JPEG + ZIP),
    Hostile("polyglot: png and html", 200, GOOD, content=PNG + b"<script>alert(1)</script>"),
    Hostile("called a video, is a jpeg", 200, GOOD, content=JPEG, headers={"Content-Type": "video/mp4"}),
    Hostile(
        "called a web form, is a jpeg",
        200,
        GOOD,
        content=JPEG,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ),
    form("path in a name", 200, GOOD, "file", "../../../etc/passwd", JPEG),
    form("zero byte in a name", 200, GOOD, "file", "a%00.jpg", JPEG),
    form("a name of a kilobyte", 200, GOOD, "file", "a" * 1_000 + ".jpg", JPEG),
    # Forms.
    form("unknown field", 422, "unknown_field", "picture", "a.jpg", JPEG),
    form("form without bytes", 422, "no_source", "file", "a.jpg", b""),
    Hostile(
        "form without a boundary", 400, "invalid_form", content=JPEG, headers={"Content-Type": "multipart/form-data"}
    ),
    Hostile(
        "form that is none",
        400,
        "invalid_form",
        content=JPEG,
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    ),
    Hostile(
        "two files",
        400,
        "invalid_form",
        content=multipart("file", "a", JPEG)[0][:-7] + multipart("file", "b", JPEG)[0],
        headers=multipart("file", "a", b"")[1],
    ),
    Hostile(
        "text field as the file",
        422,
        "no_source",
        content=b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n',
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    ),
    # Objects.
    Hostile("bucket that is not allowed", 403, "uri_not_allowed", path=IMAGES + "?uri=s3://other/a.jpg"),
    Hostile("bucket with the same beginning", 403, "uri_not_allowed", path=IMAGES + "?uri=s3://allowed/prefixed/a.jpg"),
    Hostile("local file", 403, "uri_not_allowed", path=IMAGES + "?uri=/etc/passwd"),
    Hostile("file uri", 403, "uri_not_allowed", path=IMAGES + "?uri=file:///etc/passwd"),
    Hostile("way out of the bucket", 422, "invalid_uri", path=IMAGES + "?uri=s3://allowed/prefix/../../other/a.jpg"),
    Hostile("metadata service", 403, "uri_not_allowed", path=IMAGES + "?uri=http://169.254.169.254/latest/meta-data"),
    Hostile("private address", 403, "uri_not_allowed", path=IMAGES + "?uri=http://10.0.0.1/a.jpg"),
    Hostile("loopback", 403, "uri_not_allowed", path=IMAGES + "?uri=http://localhost:8265/api/jobs/"),
    Hostile("ipv6 loopback", 403, "uri_not_allowed", path=IMAGES + "?uri=http://[::1]/"),
    Hostile("gopher", 403, "uri_not_allowed", path=IMAGES + "?uri=gopher://localhost:6379/_FLUSHALL"),
    Hostile("data uri", 403, "uri_not_allowed", path=IMAGES + "?uri=data:image/png;base64,AAAA"),
    Hostile("zero byte in a uri", 422, "invalid_uri", path=IMAGES + "?uri=s3://allowed/prefix/a%00.jpg"),
    Hostile("uri of 5 kilobytes", 422, "invalid_request", path=IMAGES + "?uri=s3://allowed/prefix/" + "a" * 5_000),
    Hostile("body and uri", 422, "two_sources", path=IMAGES + "?uri=s3://allowed/prefix/a.jpg", content=JPEG),
    # Parameters, paths, methods, headers.
    Hostile("unknown task", 404, "unknown_task", path=IMAGES + "?task=beauty", content=JPEG),
    Hostile("seventeen tasks", 422, "invalid_request", path=IMAGES + "?" + "&".join(["task=fs2k"] * 17), content=JPEG),
    Hostile("unknown model", 422, "invalid_request", path=IMAGES + "?model=newest", content=JPEG),
    Hostile("no challenger", 404, "no_challenger", path=IMAGES + "?model=challenger", content=JPEG),
    Hostile("unknown choice", 422, "invalid_request", path=IMAGES + "?several_people=maybe", content=JPEG),
    Hostile("unknown path", 404, "not_found", path="/v1/pictures:score", content=JPEG),
    Hostile("file of the service", 404, "not_found", path="/web/../app.py", method="GET"),
    Hostile("encoded way out", 404, "not_found", path="/web/%2e%2e/%2e%2e/etc/passwd", method="GET"),
    Hostile("wrong method", 405, "method_not_allowed", method="GET"),
    Hostile("put", 405, "method_not_allowed", method="PUT", content=JPEG),
    Hostile("request id with a line break", 200, GOOD, content=JPEG, headers={"X-Request-ID": "a" * 500}),
    Hostile("page of another site", 403, "cross_site", content=JPEG, headers={"Origin": "http://evil.example"}),
    Hostile("another name for this machine", 403, "foreign_host", content=JPEG, headers={"Host": "evil.example"}),
    # Batches.
    Hostile("batch: no json", 422, "invalid_json", path=BATCHES, content=b"{"),
    Hostile("batch: deep json", 422, "invalid_json", path=BATCHES, content=b"[" * 100_000),
    Hostile("batch: nothing", 422, "invalid_request", path=BATCHES, content=b"{}"),
    Hostile(
        "batch: unknown field",
        422,
        "invalid_request",
        path=BATCHES,
        content=b'{"catalog": "s3://allowed/prefix/c", "shell": "id"}',
    ),
    Hostile("batch: wrong type", 422, "invalid_request", path=BATCHES, content=b'{"catalog": 7}'),
    Hostile("batch: not allowed", 403, "uri_not_allowed", path=BATCHES, content=b'{"catalog": "/etc"}'),
    Hostile(
        "batch: one not allowed",
        403,
        "uri_not_allowed",
        path=BATCHES,
        content=b'{"videos": [{"video_id": "a", "uri": "/etc/passwd"}]}',
    ),
    Hostile(
        "batch: unknown task",
        404,
        "unknown_task",
        path=BATCHES,
        content=b'{"catalog": "s3://allowed/prefix/c", "tasks": ["; id"]}',
    ),
    Hostile("batch: no such id", 404, "unknown_batch", path=BATCHES + "/batch-0123456789abcdef", method="GET"),
    Hostile("batch: id that is a path", 404, "not_found", path=BATCHES + "/..%2f..%2fetc", method="GET"),
    # The inference protocol.
    infer("infer: no json", "invalid_json", b"{"),
    infer("infer: nothing", "invalid_request", {}),
    infer("infer: unknown input", "invalid_input", tensor(name="image")),
    infer("infer: wrong type", "invalid_input", tensor(datatype="FP32")),
    infer("infer: wrong shape", "invalid_input", tensor(shape=[1, 64, 64, 3])),
    infer("infer: negative shape", "invalid_input", tensor(shape=[-1, 40, 40, 3])),
    infer("infer: a shape of terabytes", "invalid_input", tensor(shape=[10**9, 40, 40, 3])),
    infer("infer: too few values", "invalid_input", tensor(data=[0] * 10)),
    infer("infer: values too large", "invalid_input", tensor(data=[256] * 4800)),
    infer("infer: words as values", "invalid_input", tensor(data=["a"] * 4800)),
    infer("infer: ragged", "invalid_input", tensor(data=[[0, 1], [2]])),
    infer("infer: no data", "invalid_input", tensor(data=None)),
    infer(
        "infer: header beyond the body", "invalid_header", tensor(), **{"Inference-Header-Content-Length": "99999999"}
    ),
    infer("infer: unknown output", "unknown_output", tensor() | {"outputs": [{"name": "secret"}]}),
    Hostile("infer: unknown model", 404, "unknown_model", path="/v2/models/nope/infer", content=b"{}"),
    Hostile("infer: unknown version", 404, "unknown_version", path="/v2/models/fs2k/versions/9/infer", content=b"{}"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("hostile")
    limits = {"max_image_bytes": 2 << 20, "max_video_bytes": 2 << 20}
    with running_service(
        folder, FakeJobs(), batches=str(folder / "batches"), buckets=("s3://allowed/prefix",), **limits
    ) as running:
        yield running


def test_there_are_sixty() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_answered_with_its_code(service: Service, case: Hostile) -> None:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        response = client.request(case.method, case.path, content=case.content, headers=case.headers)
        assert response.headers["X-Request-ID"]
        body = response.json()
        assert (response.status_code, body.get("code", GOOD)) == (case.status, case.code), body
        if case.code != GOOD:
            assert response.headers["Content-Type"] == "application/problem+json"
            assert body["status"] == case.status
            assert str(Path(__file__).parents[2]) not in response.text, "the answer tells of this machine's folders"
            assert "/dev/shm" not in response.text
            assert "Traceback" not in response.text
        assert client.get("/readyz").status_code == 200


def raw(service: Service, sent: bytes, *, pause_s: float = 0.0, then: bytes = b"", timeout_s: float = 20) -> bytes:
    """What comes back for bytes on the wire."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        connection.sendall(sent)
        if then:
            time.sleep(pause_s)
            connection.sendall(then)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer and b"}" in answer:
                    break
        except ConnectionResetError:
            pass
        return answer


def test_a_slow_body_is_ended(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = service.engine.settings
    hasty = settings.serving.model_copy(update={"max_body_s": 1.0})
    monkeypatch.setattr(service.engine, "settings", settings.model_copy(update={"serving": hasty}))
    head = f"POST {IMAGES} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n".encode()
    answer = raw(service, head + JPEG[:10])
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer


def test_huge_headers_are_refused(service: Service) -> None:
    for num_bytes in (40_000, 200_000):
        answer = raw(service, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: " + b"a" * num_bytes + b"\r\n\r\n")
        assert answer.split(b" ")[1] == b"431"
        assert b"headers_too_large" in answer
    assert httpx.get(service.url + "/healthz").status_code == 200


def test_a_body_longer_than_it_says_is_no_second_request(service: Service) -> None:
    sent = f"POST {IMAGES} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\n".encode()
    sent += b"helloGARBAGE / HTTP/1.1\r\n\r\n"
    assert raw(service, sent).split(b" ")[1] in (b"400", b"415")
    assert httpx.get(service.url + "/healthz").status_code == 200


def test_chunks_without_end_are_cut_off(service: Service) -> None:
    def endless() -> Iterator[bytes]:
        yield b"\xff\xd8\xff"
        while True:
            yield bytes(64 << 10)

    try:
        response = httpx.post(service.url + IMAGES, content=endless(), timeout=30)
    except (httpx.WriteError, httpx.ReadError):
        pass  # the connection was cut while the client still sent
    else:
        assert response.status_code == 413
    assert httpx.get(service.url + "/healthz").status_code == 200


def test_a_client_that_leaves_costs_nothing(service: Service) -> None:
    head = f"POST {VIDEOS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {1 << 20}\r\n\r\n".encode()
    host, port = service.url.removeprefix("http://").split(":")
    for _ in range(30):
        connection = socket.create_connection((host, int(port)))
        connection.sendall(head + bytes(1000))
        connection.close()
    deadline = time.monotonic() + 10
    while service.engine.admission.num_running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert service.engine.admission.num_running == 0
    assert httpx.post(service.url + IMAGES, content=JPEG, timeout=30).status_code == 200
