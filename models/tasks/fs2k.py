"""The fs2k task: seven attributes of a face photo or sketch, as annotated in the FS2K dataset."""

from collections.abc import Mapping
from typing import Any

from infra.errors import UserError
from models.tasks.base import Head
from models.tasks.classification import ClassificationTask

_YES_NO = (False, True)

# FS2K's codes are positions in these tuples; most of its yes/no codes count "with" as 0.
_OFFICIAL_CODES: dict[str, tuple[bool | int | str, ...]] = {
    "hair": (True, False),
    "gender": ("male", "female"),
    "earring": (True, False),
    "smile": (True, False),
    "frontal_face": (True, False),
    "hair_color": ("brown", "black", "red", "none", "golden"),
    "style": (0, 1, 2),
}


class Fs2k(ClassificationTask):
    """Seven attributes; what users see is never inverted: ``smile: true`` means smiling."""

    name = "fs2k"
    description = (
        "Tells seven attributes of a face photo or sketch: hair, gender, earring, smile, frontal face (turned by at "
        "most 30°), hair colour and drawing style."
    )
    limits = (
        "FS2K has few rare values (48 without hair and 60 with red hair among 1,058 training photos): read the figures "
        "of each attribute, not their mean alone.",
        "Gender is how annotators read a face in two classes; it says nothing about a person's identity.",
        "Style is the manner of the training data's sketches (three in FS2K) and means little elsewhere.",
        "Not for identification, and not for decisions about people.",
    )
    heads = (
        Head(name="hair", classes=_YES_NO),
        Head(name="gender", classes=("male", "female")),
        Head(name="earring", classes=_YES_NO),
        Head(name="smile", classes=_YES_NO),
        Head(name="frontal_face", classes=_YES_NO),
        Head(name="hair_color", classes=("brown", "black", "red", "none", "golden")),
        Head(name="style", classes=(0, 1, 2)),
    )


def from_official(record: Mapping[str, Any]) -> dict[str, bool | int | str]:
    """The label columns of one entry of ``anno_train.json`` or ``anno_test.json``, as users see them.

    Raises:
        UserError: A code is absent or not one of FS2K's; names the image, the attribute and the value.
    """
    labels: dict[str, bool | int | str] = {}
    for attribute, values in _OFFICIAL_CODES.items():
        code = record.get(attribute)
        if type(code) is not int or not 0 <= code < len(values):
            raise UserError(
                f"annotation of {record.get('image_name', '(no image_name)')!r}: {attribute} is {code!r}, "
                f"FS2K's codes for it are 0 to {len(values) - 1}"
            )
        labels[attribute] = values[code]
    return labels


TASK = Fs2k()
