"""What all report pages share: templates, and how names, figures and times are written."""

import base64
import io
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ray_jobs.crops.jpeg import decode_crop

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> Environment:
    """The templates of the reports, and how they write names, figures and times."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "words": lambda name: name.replace("_", " "),
        "heading": _heading,
        "figure": _figure,
        "utc": lambda at: datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "percent": lambda share: f"{share:.0%}" if share >= 0.01 or share == 0 else "<1%",
    }
    return found


def _heading(name: str) -> str:
    """A name as a heading; one with a digit is an acronym (FS2K)."""
    words = name.replace("_", " ")
    return words.upper() if any(letter.isdigit() for letter in name) else words.capitalize()


def _figure(value: str | int | float) -> str:
    """A table's cell: numbers with the digits that matter, text as it is."""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def crop_address(crop: bytes, side_px: int) -> str:
    """An encoded crop as the address of a small JPEG, to stand in the page itself."""
    buffer = io.BytesIO()
    Image.fromarray(decode_crop(crop)).resize((side_px, side_px)).save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
