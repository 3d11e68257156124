"""A YAML file of limits as a model, for verbs that judge by them."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from infra.errors import UserError

Limits = TypeVar("Limits", bound=BaseModel)


def read_limits_file(path: str | None, kind: type[Limits], noun: str) -> Limits:
    """The model of a file; the defaults without one.

    Raises:
        UserError: Names the file and the field that is wrong.
    """
    if path is None:
        return kind()
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return kind.model_validate({} if values is None else values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: the {noun} cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from error
