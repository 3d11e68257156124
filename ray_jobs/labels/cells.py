"""What a cell of a label table means: pure functions from text to values, in Chinese and English."""

import re
import unicodedata
from urllib.parse import parse_qs, urlsplit

MISSING_WORDS = frozenset({"", "-", "--", "—", "——", "–", "/", "n/a", "na", "nan", "none", "null", "无", "未知", "?"})
GENDERS = {
    "男": "male",
    "男性": "male",
    "m": "male",
    "male": "male",
    "man": "male",
    "女": "female",
    "女性": "female",
    "f": "female",
    "female": "female",
    "woman": "female",
}
# A remark's name, and how annotators write it.
REMARKS = {
    "face_cut_off": ("人脸不全", "脸不全", "face cut off", "incomplete face"),
    "no_face_shown": ("未露脸", "没露脸", "不露脸", "no face shown", "no face"),
    "several_people": ("多人出镜", "多人", "several people", "multiple people"),
    "deleted": ("已删除", "已删", "作品已删除", "deleted"),
    "small_face": ("面部尺寸小", "脸小", "small face"),
    "face_paint": ("面部装扮", "face paint", "face paint or costume", "costume"),
    "child": ("儿童", "小孩", "未成年", "child", "minor"),
    "smoking": ("吸烟", "抽烟", "smoking"),
    "not_own_work": ("疑似非本人作品", "非本人作品", "probably somebody else's video", "not own work"),
}
_REMARK_BY_TEXT = {text: name for name, texts in REMARKS.items() for text in (*texts, name)}
_SEPARATORS = re.compile(r"[、,;/|\n]+|，|；")
_SCORE_CELL = re.compile(r"(?P<score>\d+(?:\.\d+)?)\s*分?\s*(?P<gender>[^\W\d]*)")
_AGE_CELL = re.compile(r"(?P<age>\d+(?:\.\d+)?)\s*(?:岁|years?|y)?")
_CREATOR = re.compile(r"(?P<creator>[^_]+)_\d+_\d+")


class BadCell(ValueError):
    """A cell that is neither a value nor missing; the message says what it should be."""


def plain(value: object) -> str:
    """A cell's text as it is written, for ids and addresses; empty where the value is missing.

    Spreadsheets give whole numbers as floats: 78.0 is ``78``.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return "" if text.lower() in MISSING_WORDS else text


def normalized(value: object) -> str:
    """A cell's text for reading its meaning: full-width characters made ordinary (NFKC), spaces trimmed."""
    return plain(" ".join(unicodedata.normalize("NFKC", plain(value)).split()))


def read_gender(text: str) -> str | None:
    """``male`` or ``female``; None where the text is empty.

    Raises:
        BadCell: It is something else.
    """
    if not text:
        return None
    if text.lower() not in GENDERS:
        raise BadCell(f"{text!r} is no gender (男 or 女, male or female)")
    return GENDERS[text.lower()]


def read_score(text: str) -> tuple[int | None, str | None]:
    """Score and gender of a score cell, which may hold both (``78 男``); None where missing.

    Raises:
        BadCell: It holds no whole score, or something after it that is no gender.
    """
    if not text:
        return None, None
    match = _SCORE_CELL.fullmatch(text)
    if match is None:
        raise BadCell(f"{text!r} is no score (a number, with or without a gender after it)")
    score = float(match["score"])
    if not score.is_integer():
        raise BadCell(f"{text!r} is no whole score")
    return int(score), read_gender(match["gender"])


def read_age(text: str) -> float | None:
    """Age in years; None where missing.

    Raises:
        BadCell: It is no number of years from 0 to 120.
    """
    if not text:
        return None
    match = _AGE_CELL.fullmatch(text.lower())
    if match is None or not 0 <= float(match["age"]) <= 120:
        raise BadCell(f"{text!r} is no age in years")
    return float(match["age"])


def read_remarks(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the remarks in a cell, each once, and the parts that are none of those known.

    Several may be joined by 、 or any other separator.
    """
    parts = [part.strip() for part in _SEPARATORS.split(text) if part.strip()]
    known = dict.fromkeys(_REMARK_BY_TEXT[part.lower()] for part in parts if part.lower() in _REMARK_BY_TEXT)
    unknown = dict.fromkeys(part for part in parts if part.lower() not in _REMARK_BY_TEXT)
    return tuple(known), tuple(unknown)


def creator_of_url(url: str) -> str | None:
    """The creator that a page's address names: ``s=<creator id>_<timestamp>_<sequence>``; None where it names none."""
    for value in parse_qs(urlsplit(url).query).get("s", []):
        match = _CREATOR.fullmatch(value)
        if match is not None:
            return match["creator"]
    return None
