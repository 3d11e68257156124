"""``python -m ray_jobs.diagnosing.gpu_probe``: whether torch computes and NVDEC decodes here, as a line of JSON."""

import io
import json
import sys
from typing import Any


def torch_facts() -> dict[str, Any]:
    """CUDA that torch was built for, GPUs that it sees, and what goes wrong with the first."""
    import torch

    facts: dict[str, Any] = {"cuda": torch.version.cuda, "count": 0, "error": ""}
    try:
        facts["count"] = torch.cuda.device_count()
        if facts["count"]:
            torch.ones(8, device="cuda").sum().item()
    except Exception as error:  # whatever the driver throws is the finding
        facts["error"] = " ".join(str(error).split())[:300]
    return facts


def clip() -> bytes:
    """Four H.264 pictures of 320 × 240, in memory."""
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for index in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((240, 320, 3), 60 * index, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def nvdec_error() -> str:
    """Why the GPU's decoder does not decode a clip; empty where it does."""
    import av
    from av.codec.hwaccel import HWAccel

    try:
        accelerator = HWAccel("cuda", allow_software_fallback=False)
        with av.open(io.BytesIO(clip()), "r", hwaccel=accelerator) as container:
            number = len(list(container.decode(video=0)))
        return "" if number == 4 else f"{number} of 4 pictures came out"
    except Exception as error:  # PyAV raises several kinds, and none is documented
        return " ".join(str(error).split())[:300] or type(error).__name__


def main() -> None:
    """Print the facts."""
    facts = torch_facts()
    if "--nvdec" in sys.argv:
        facts["nvdec"] = nvdec_error()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
