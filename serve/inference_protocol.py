"""The Open Inference Protocol (V2) on crops: health, metadata, and infer, in JSON or with binary tensors.

https://github.com/open-inference-protocol: what KServe, Triton and their clients speak. A model is a task.
"""

import json
import math
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.registry import CHAMPION
from models.tasks.base import get_task
from serve.following import LiveScorer
from serve.problems import Problem
from serve.schemas import PROBLEMS
from serve.scoring import Engine
from serve.uploads import read_body

HEADER_LENGTH = "Inference-Header-Content-Length"
INPUT = "crops"
_MAX_CROPS = 1024
NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready."}}


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore")  # the protocol lets clients add members


class InputTensor(_Model):
    """A tensor of a request."""

    name: str
    shape: list[int] = Field(min_length=1, max_length=8)
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class WantedOutput(_Model):
    """An output that a client asks for."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(_Model):
    """The JSON part of an infer request."""

    id: str | None = Field(None, max_length=256)
    inputs: list[InputTensor] = Field(min_length=1, max_length=16)
    outputs: list[WantedOutput] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


def router(engine: Engine) -> APIRouter:
    """The protocol's routes."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=PROBLEMS)

    @routes.post(
        "/models/{model}/infer",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": InferRequest.model_json_schema()}},
            }
        },
    )
    @routes.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """The outputs of a scorer for crops uint8[n, S, S, 3], RGB, made with its face policy."""
        found = _live(engine, model, version)
        async with engine.admission.slot():
            size = found.predictor.scorer.manifest.face_policy.crop_size
            serving = engine.settings.serving
            max_bytes = max(serving.max_image_bytes, 4 * size * size * 3 * serving.max_batch_faces)
            body = await read_body(request, serving, max_bytes=max_bytes, what="request")
            asked, binary = _parsed(body, request.headers.get(HEADER_LENGTH))
            crops = _crops(asked, binary, size)
            prediction = await engine.predict(found, crops)
        return _response(found, asked, prediction.faces, len(crops))

    @routes.get("")
    async def server_metadata() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": "facereel", "version": "2", "extensions": ["binary_tensor_data"]}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @routes.get("/health/ready", responses=NOT_READY)
    async def ready(response: Response) -> dict[str, bool]:
        """Whether scorers are loaded and checked."""
        response.status_code = 200 if engine.following.ready else 503
        return {"ready": engine.following.ready}

    @routes.get("/models/{model}")
    @routes.get("/models/{model}/versions/{version}")
    async def model_metadata(model: str, version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs of a task's scorer."""
        found = _live(engine, model, version)
        size = found.predictor.scorer.manifest.face_policy.crop_size
        return {
            "name": model,
            "versions": [found.version],
            "platform": "facereel",
            "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, size, size, 3]}],
            "outputs": [
                {"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in _outputs(found.task)
            ],
        }

    @routes.get("/models/{model}/ready", responses=NOT_READY)
    @routes.get("/models/{model}/versions/{version}/ready", responses=NOT_READY)
    async def model_ready(model: str, response: Response, version: str | None = None) -> dict[str, Any]:
        """Whether a task's scorer is loaded and checked."""
        found = engine.following.get(model, CHAMPION)
        is_ready = found is not None and version in (None, found.version)
        response.status_code = 200 if is_ready else 503
        return {"name": model, "ready": is_ready}

    return routes


def _live(engine: Engine, model: str, version: str | None) -> LiveScorer:
    found = engine.following.get(model, CHAMPION)
    if found is None:
        raise Problem(
            404, "unknown_model", f"there is no model {model!r}: {', '.join(engine.following.tasks()) or 'none yet'}"
        )
    if version not in (None, found.version):
        raise Problem(404, "unknown_version", f"version {found.version} of {model} is in use, not {version}")
    return found


@cache
def _outputs(task: str) -> list[tuple[str, str, list[int]]]:
    """Name, datatype and shape of each output: the task's columns that a tensor can hold."""
    heads = {f"{head.name}_probabilities": len(head.classes) for head in get_task(task).heads}
    heads |= {f"{head.name}_distribution": len(head.classes) for head in get_task(task).heads}
    found = []
    for field in get_task(task).output_schema():
        if pa.types.is_list(field.type):
            found.append((field.name, "FP32", [-1, heads[field.name]]))
        else:
            found.append((field.name, _datatype(field.type), [-1]))
    return found


def _datatype(type_: pa.DataType) -> str:
    if pa.types.is_boolean(type_):
        return "BOOL"
    if pa.types.is_integer(type_):
        return "INT32"
    return "FP32" if pa.types.is_floating(type_) else "BYTES"


def _parsed(body: bytes, header_length: str | None) -> tuple[InferRequest, bytes]:
    """The JSON part and the bytes behind it."""
    length = len(body)
    if header_length is not None:
        if not header_length.isdigit() or int(header_length) > len(body):
            raise Problem(
                400, "invalid_header", f"{HEADER_LENGTH}: {header_length[:40]!r} is no length within the body"
            )
        length = int(header_length)
    try:
        return InferRequest.model_validate_json(body[:length]), body[length:]
    except ValidationError as error:
        first = error.errors()[0]
        code = "invalid_json" if first["type"] == "json_invalid" else "invalid_request"
        field = ".".join(map(str, first["loc"])) or "body"
        raise Problem(400, code, f"{field}: {first['msg']}") from error


def _crops(asked: InferRequest, binary: bytes, size: int) -> npt.NDArray[np.uint8]:
    """The crops uint8[n, size, size, 3] of a request."""
    if [item.name for item in asked.inputs] != [INPUT]:
        raise Problem(
            400, "invalid_input", f"the inputs are {[item.name for item in asked.inputs]}, wanted: [{INPUT!r}]"
        )
    tensor = asked.inputs[0]
    if tensor.datatype != "UINT8":
        raise Problem(400, "invalid_input", f"datatype {tensor.datatype[:20]!r}: UINT8 is taken")
    if tensor.shape[1:] != [size, size, 3] or not 0 < tensor.shape[0] <= _MAX_CROPS:
        raise Problem(
            400, "invalid_input", f"shape {tensor.shape}: [n, {size}, {size}, 3] is taken, n from 1 to {_MAX_CROPS}"
        )
    num_values = math.prod(tensor.shape)
    if "binary_data_size" in tensor.parameters:
        if tensor.parameters["binary_data_size"] != len(binary) or len(binary) != num_values:
            raise Problem(400, "invalid_input", f"{len(binary)} bytes behind the JSON, the shape wants {num_values}")
        return np.frombuffer(binary, np.uint8).reshape(tensor.shape)
    if tensor.data is None:
        raise Problem(400, "invalid_input", "the input has neither data nor parameters.binary_data_size")
    try:
        values = np.asarray(tensor.data)
    except ValueError as error:
        raise Problem(400, "invalid_input", "data is ragged") from error
    if values.size != num_values or values.dtype.kind not in "iu":
        raise Problem(
            400, "invalid_input", f"data has {values.size} values of kind {values.dtype}, wanted {num_values} integers"
        )
    if values.min() < 0 or values.max() > 255:
        raise Problem(400, "invalid_input", "data has values outside of 0 to 255")
    return values.astype(np.uint8).reshape(tensor.shape)


def _response(live: LiveScorer, asked: InferRequest, columns: dict[str, list[Any]], num_crops: int) -> Response:
    known = {name: (datatype, shape) for name, datatype, shape in _outputs(live.task)}
    # A column without values (an interval of a scorer that is not calibrated) is no tensor.
    names = [name for name in known if name in columns and not any(value is None for value in columns[name])]
    if asked.outputs is not None:
        unknown = [item.name for item in asked.outputs if item.name not in names]
        if unknown:
            raise Problem(400, "unknown_output", f"there is no output {unknown[0][:60]!r}; known: {', '.join(names)}")
        names = [item.name for item in asked.outputs]
    by_default = bool(asked.parameters.get("binary_data_output", False))
    as_binary = {item.name: bool(item.parameters.get("binary_data", by_default)) for item in asked.outputs or []}
    outputs: list[dict[str, Any]] = []
    payload = b""
    for name in names:
        datatype, shape = known[name]
        values = columns[name]
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [num_crops, *shape[1:]]}
        if as_binary.get(name, by_default):
            data = _packed(values, datatype)
            output["parameters"] = {"binary_data_size": len(data)}
            payload += data
        else:
            output["data"] = np.asarray(values).ravel().tolist()
        outputs.append(output)
    header = {
        "model_name": live.task,
        "model_version": live.version,
        "outputs": outputs,
        "parameters": {"digest": live.digest},
    }
    if asked.id is not None:
        header["id"] = asked.id
    if not payload:
        return JSONResponse(header)
    text = json.dumps(header).encode()
    return Response(text + payload, media_type="application/octet-stream", headers={HEADER_LENGTH: str(len(text))})


_DTYPES: dict[str, Literal["<f4", "<i4", "?"]] = {"FP32": "<f4", "INT32": "<i4", "BOOL": "?"}


def _packed(values: list[Any], datatype: str) -> bytes:
    """A tensor's bytes: little-endian, row-major; strings behind their lengths."""
    if datatype == "BYTES":
        encoded = [str(value).encode() for value in values]
        return b"".join(len(item).to_bytes(4, "little") + item for item in encoded)
    return np.asarray(values, dtype=_DTYPES[datatype]).tobytes()
