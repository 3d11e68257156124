"""Storage in S3 and servers that speak its protocol, through boto3; botocore's errors become typed ones."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore import exceptions as boto_errors
from botocore.config import Config
from pydantic import SecretStr

from infra.settings import StorageSettings
from infra.storage_base import (
    AccessDenied,
    AlreadyExists,
    InvalidUri,
    ObjectChanged,
    ObjectNotFound,
    ObjectStat,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
    check_etag,
)
from infra.storage_reader import SeekableReader

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, GetObjectOutputTypeDef

# Larger files go in parts of this size: S3 wants 5 MiB at least, and memory holds one a thread.
PART_BYTES = 16 << 20
BOTO_ERRORS = (boto_errors.BotoCoreError, boto_errors.ClientError, S3UploadFailedError, OSError)
TIMEOUTS = (boto_errors.ConnectTimeoutError, boto_errors.ReadTimeoutError, TimeoutError)
NO_ACCESS = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.CredentialRetrievalError,
    boto_errors.ProfileNotFound,
    boto_errors.SSOError,
    boto_errors.TokenRetrievalError,
)
# Raised while a body streams, where botocore no longer retries.
BROKEN_BODY = (
    boto_errors.ReadTimeoutError,
    boto_errors.ResponseStreamingError,
    boto_errors.IncompleteReadError,
    OSError,
)


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``; no part is percent-decoded, the key may be empty.

    Raises:
        InvalidUri: where the bucket is missing.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InvalidUri(f"{uri}: no bucket; an object is s3://bucket/key")
    return bucket, key


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _object_name(uri: str) -> dict[str, Any]:
    bucket, key = split_uri(uri)
    if not key:
        raise InvalidUri(f"{uri}: a bucket, not an object; an object is s3://bucket/key")
    return {"Bucket": bucket, "Key": key}


class S3Backend:
    """Buckets behind one endpoint, through one boto3 client: safe for threads, not for a fork."""

    def __init__(self, settings: StorageSettings) -> None:
        """Build the client, without a request.

        Raises:
            AccessDenied: where ``AWS_PROFILE`` names a profile that does not exist.
        """
        self.settings = settings
        try:
            self._session = boto3.Session(
                aws_access_key_id=settings.access_key_id,
                aws_secret_access_key=_plain(settings.secret_access_key),
                aws_session_token=_plain(settings.session_token),
            )
            self.region = settings.region or self._session.region_name or "us-east-1"
            self._client: S3Client = self._session.client(
                "s3",
                endpoint_url=settings.endpoint_url,
                region_name=self.region,
                config=Config(
                    connect_timeout=settings.connect_timeout_s,
                    read_timeout=settings.read_timeout_s,
                    retries={"mode": "standard", "total_max_attempts": settings.max_attempts},
                    max_pool_connections=settings.max_pool_connections,
                    s3={"addressing_style": settings.addressing_style},
                    # Servers other than AWS do not all know the checksums that boto3 adds by itself.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except boto_errors.ProfileNotFound as error:
            raise AccessDenied(f"S3: {error}; fix AWS_PROFILE or set storage.access_key_id") from error

    @property
    def endpoint(self) -> str:
        """The address that requests go to."""
        return self._client.meta.endpoint_url

    def credentials(self) -> "ReadOnlyCredentials":
        """The credentials in use now; those of a role expire.

        Raises:
            AccessDenied: where there are none.
        """
        with self._typed_errors("credentials"):
            found = self._session.get_credentials()
            if found is None:
                raise boto_errors.NoCredentialsError
            return found.get_frozen_credentials()

    def stat(self, uri: str) -> ObjectStat:
        """Describe the object by a HEAD request."""
        with self._typed_errors(uri):
            answer = self._client.head_object(**_object_name(uri))
        return self._object_stat(uri, answer, answer.get("ContentLength"))

    def list_prefix(self, uri: str) -> Iterator[ObjectStat]:
        """Yield the objects below ``uri/``, a page of up to 1000 at a time."""
        bucket, key = split_uri(uri)
        prefix = key if key.endswith("/") or not key else f"{key}/"
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix))
        is_empty = True
        while True:
            with self._typed_errors(uri):
                page = next(pages, None)
            if page is None:
                break
            for item in page.get("Contents", []):
                is_empty = False
                # Consoles make "folders" as empty objects with such a key.
                if not item["Key"].endswith("/"):
                    yield self._object_stat(f"s3://{bucket}/{item['Key']}", item, item["Size"])
        if is_empty and prefix:
            raise ObjectNotFound(f"{uri} (at {self.endpoint}): no object below this prefix")

    def read_range(self, uri: str, start: int, end: int, etag: str | None) -> bytes:
        """Read bytes [start, end), cut at the end of the object."""
        if start >= end:
            check_etag(uri, etag, self.stat(uri).etag)
            return b""
        return self._get(uri, (start, end), etag)[0]

    def read_all(self, uri: str) -> bytes:
        """Read the object with one request."""
        return self._get(uri, None, None)[0]

    def open_reader(self, uri: str, etag: str | None) -> SeekableReader:
        """Open the object by reading its head: one request tells size and etag, and brings the first block."""
        head, stat = self._get(uri, (0, self.settings.read_ahead_bytes), etag)
        return SeekableReader(
            stat,
            partial(self._fetch, stat),
            read_ahead_bytes=self.settings.read_ahead_bytes,
            head=head,
        )

    def put(self, uri: str, data: bytes, *, if_absent: bool) -> ObjectStat:
        """Write the object with one request (at most 5 GiB)."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        try:
            with self._typed_errors(uri):
                answer = self._client.put_object(**_object_name(uri), Body=data, **condition)
        except ObjectChanged as error:
            raise AlreadyExists(f"{uri} (at {self.endpoint}): exists already") from error
        return self._object_stat(uri, answer, len(data))

    def put_file(self, uri: str, source: Path, *, if_absent: bool) -> ObjectStat:
        """Write the object from a file, in parts where it is large."""
        name = _object_name(uri)
        if not if_absent:
            with self._typed_errors(uri):
                self._client.upload_file(str(source), name["Bucket"], name["Key"])
            return self.stat(uri)
        with suppress(ObjectNotFound):  # what is there need not be sent to be refused
            self.stat(uri)
            raise AlreadyExists(f"{uri} (at {self.endpoint}): exists already")
        if source.stat().st_size <= PART_BYTES:
            return self.put(uri, source.read_bytes(), if_absent=True)
        # boto3's own upload in parts knows no condition.
        with self._typed_errors(uri):
            upload = self._client.create_multipart_upload(**name)["UploadId"]
        try:
            self._put_parts(uri, source, upload)
        except BaseException:
            with suppress(StorageError), self._typed_errors(uri):
                self._client.abort_multipart_upload(**name, UploadId=upload)
            raise
        return self.stat(uri)

    def _put_parts(self, uri: str, source: Path, upload: str) -> None:
        """Send the file as the parts of an upload, and complete it where the name is not taken."""
        name = _object_name(uri)
        parts: list[CompletedPartTypeDef] = []
        # At most 10,000 parts.
        part_bytes = max(PART_BYTES, -(-source.stat().st_size // 10_000))
        with source.open("rb") as file:
            for number, part in enumerate(iter(lambda: file.read(part_bytes), b""), start=1):
                with self._typed_errors(uri):
                    answer = self._client.upload_part(**name, UploadId=upload, PartNumber=number, Body=part)
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        try:
            with self._typed_errors(uri):
                self._client.complete_multipart_upload(
                    **name, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
                )
        except ObjectChanged as error:
            raise AlreadyExists(f"{uri} (at {self.endpoint}): exists already") from error

    def delete(self, uri: str) -> None:
        """Remove the object; none there is no error."""
        with self._typed_errors(uri):
            self._client.delete_object(**_object_name(uri))

    def _fetch(self, stat: ObjectStat, start: int, end: int) -> bytes:
        return self._get(stat.uri, (start, end), stat.etag)[0]

    def _get(self, uri: str, span: tuple[int, int] | None, etag: str | None) -> tuple[bytes, ObjectStat]:
        """The bytes of ``span`` (None: all) and what the object is; a body that breaks off is asked for again."""
        request = _object_name(uri)
        if span is not None:
            request["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        if etag is not None:
            request["IfMatch"] = f'"{etag.strip(chr(34))}"'
        for attempt in range(1, self.settings.max_attempts + 1):
            try:
                with self._typed_errors(uri):
                    answer = self._client.get_object(**request)
            except _RangeUnsatisfiable:
                # Nothing there to read: an empty object, or a range past its end.
                stat = self.stat(uri)
                check_etag(uri, etag, stat.etag)
                return b"", stat
            with closing(answer["Body"]) as body:
                stat = self._describe(uri, answer, span)
                # Not every server honours If-Match.
                check_etag(uri, etag, stat.etag)
                with self._typed_errors(uri):
                    try:
                        return body.read(), stat
                    except BROKEN_BODY:
                        if attempt == self.settings.max_attempts:
                            raise
        raise AssertionError("max_attempts is at least 1")

    def _describe(self, uri: str, answer: "GetObjectOutputTypeDef", span: tuple[int, int] | None) -> ObjectStat:
        size_bytes: int | None = answer.get("ContentLength")
        if span is not None and "ContentRange" in answer:
            size_bytes = int(answer["ContentRange"].rpartition("/")[2])
        elif span is not None and size_bytes != 0:
            raise StorageUnavailable(f"{uri} (at {self.endpoint}): the server does not answer ranges")
        return self._object_stat(uri, answer, size_bytes)

    def _object_stat(self, uri: str, answer: Mapping[str, Any], size_bytes: int | None) -> ObjectStat:
        if size_bytes is None or "ETag" not in answer:
            raise StorageUnavailable(f"{uri} (at {self.endpoint}): an answer without size or etag: no S3 server")
        return ObjectStat(uri, size_bytes, answer["ETag"].strip('"'))

    @contextmanager
    def _typed_errors(self, uri: str) -> Iterator[None]:
        try:
            yield
        except BOTO_ERRORS as error:
            raise _typed(error)(f"{uri} (at {self.endpoint}): {_message(error)}") from error


def _message(error: Exception) -> str:
    """One line; botocore's own names the operation first and may go on for several."""
    if isinstance(error, boto_errors.ClientError):
        answer = error.response.get("Error", {})
        return f"{answer.get('Code')}: {answer.get('Message')} ({error.operation_name})"
    if isinstance(error, boto_errors.ParamValidationError):
        return "no valid bucket or key"
    return " ".join(str(error).split())


class _RangeUnsatisfiable(StorageError):
    """Status 416; never leaves this module."""


def _typed(error: Exception) -> type[StorageError]:
    if isinstance(error, boto_errors.ClientError):
        return _typed_answer(error)
    if isinstance(error, TIMEOUTS):
        return StorageTimeout
    if isinstance(error, NO_ACCESS):
        return AccessDenied
    if isinstance(error, boto_errors.ParamValidationError):
        return InvalidUri
    return StorageUnavailable


def _typed_answer(error: boto_errors.ClientError) -> type[StorageError]:
    """By code where it says more than the status, which is all that an answer to HEAD has."""
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in ("RequestTimeout", "RequestTimeoutException"):
        return StorageTimeout
    if code in ("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"):
        return StorageUnavailable
    by_status = {
        404: ObjectNotFound,
        408: StorageTimeout,
        # 409: another conditional write of the same key is under way.
        409: StorageUnavailable,
        412: ObjectChanged,
        416: _RangeUnsatisfiable,
        429: StorageUnavailable,
    }
    return by_status.get(status, StorageUnavailable if status >= 500 else AccessDenied)
