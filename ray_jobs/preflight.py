"""A look, before minutes of work, at whether its result can be written."""

import secrets

from infra.errors import UserError
from infra.storage import Storage, StorageError, is_s3, join


def refuse_unwritable(storage: Storage, option: str, uri: str) -> None:
    """Write an object below a bucket's prefix and remove it; a local folder says by itself, and at once.

    Raises:
        UserError: The store refuses, or is not reached.
    """
    if not is_s3(uri):
        return
    probe = join(uri, f"_probe-{secrets.token_hex(6)}")
    try:
        storage.put(probe, b"")
        storage.delete(probe)
    except StorageError as error:
        raise UserError(
            f"{option} {uri}: cannot be written: {error}; grant list, get, put and delete below it, or give another "
            "place (the verb doctor looks closer)"
        ) from error
