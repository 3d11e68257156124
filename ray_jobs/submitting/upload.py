"""What a job's upload holds: its size, and what must not be in it."""

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from infra.errors import UserError
from infra.settings import DEFAULT_CONFIG, secret_fields
from ray_jobs.submitting.environment import PASSWORD_IN_ADDRESS

MIB = 1 << 20
NUM_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Upload:
    """The files that Ray would take along, in bytes by their path below the working directory."""

    sizes: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """All of them; Ray packs without compressing."""
        return sum(self.sizes.values())

    def largest(self) -> list[tuple[str, int]]:
        """The largest entries of the working directory itself, folders as a whole."""
        tops: Counter[str] = Counter()
        for path, size in self.sizes.items():
            top, separator, _ = path.partition("/")
            tops[top + separator] += size
        return tops.most_common(NUM_SHOWN)

    def __str__(self) -> str:
        return f"{self.num_bytes / MIB:.1f} MiB in {len(self.sizes)} files"


def measure_upload(folder: Path) -> Upload:
    """Walk the folder as Ray does: ``.gitignore`` and ``.rayignore`` leave files out, and so does Ray by itself.

    Raises:
        UserError: It is not this project's folder, or a file in it cannot be read.
    """
    # Ray has no public way to ask; a walk of our own would differ from it in some pattern.
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    root = folder.absolute()
    if not (root / "ray_jobs" / "__main__.py").is_file():
        raise UserError(f"--working-dir {folder}: no ray_jobs/ there; give the project's folder")
    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).as_posix()] = path.stat().st_size

    quiet = logging.getLogger("facereel.upload")
    quiet.setLevel(logging.ERROR)  # "Ignoring upload to cluster for these files"
    try:
        packaging._dir_travel(
            root,
            [packaging._get_excludes(root, get_runtime_env_default_excludes())],
            note,
            include_gitignore=True,
            logger=quiet,
        )
    except OSError as error:
        raise UserError(f"--working-dir {folder}: {error}; mend it, or leave it out by a line in .rayignore") from error
    return Upload(sizes)


def check_upload(upload: Upload, max_bytes: int) -> None:
    """Refuse an upload beyond the limit, before minutes of sending.

    Raises:
        UserError: Names the largest entries.
    """
    if upload.num_bytes > max_bytes:
        largest = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in upload.largest())
        raise UserError(
            f"the upload would be {upload}, more than --max-upload-mib {max_bytes / MIB:g}: {largest}. Leave out what "
            "a job does not need by a line in .rayignore; data belongs into storage"
        )


def check_no_secrets(folder: Path, upload: Upload, name: str = str(DEFAULT_CONFIG)) -> None:
    """Refuse to upload a settings file with secrets: whoever may read the cluster's packages would read them.

    Raises:
        UserError: Names file and keys, not values.
    """
    path = folder / name
    if os.path.relpath(path, folder) not in upload.sizes:
        return
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    secret = set(secret_fields())
    found = [
        f"{section}.{key}"
        for section, fields in (values.items() if isinstance(values, dict) else ())
        for key, value in (fields.items() if isinstance(fields, dict) else ())
        if (value and (section, key) in secret) or PASSWORD_IN_ADDRESS.search(str(value))
    ]
    if found:
        raise UserError(
            f"{path} holds {' and '.join(found)}, and would travel with the job: take them out, and give them "
            "by reference (--secret)"
        )
