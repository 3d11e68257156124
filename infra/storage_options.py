"""The same S3 settings for libraries with clients of their own: `deltalake` and `pyarrow`."""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from infra.storage_s3 import S3Backend, split_uri

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem


def delta_options(s3: S3Backend, uri: str) -> dict[str, str]:
    """``storage_options`` for the Delta table ``uri`` (keys of the Rust crate `object_store`)."""
    settings, credentials = s3.settings, s3.credentials()
    options = {
        "AWS_REGION": s3.region,
        "AWS_ACCESS_KEY_ID": credentials.access_key or "",
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key or "",
        # A commit is a put with If-None-Match: no lock table is needed.
        "AWS_CONDITIONAL_PUT": "etag",
        "CONNECT_TIMEOUT": f"{settings.connect_timeout_s}s",
        "TIMEOUT": f"{settings.read_timeout_s}s",
        "MAX_RETRIES": str(settings.max_attempts - 1),
    }
    if credentials.token:
        options["AWS_SESSION_TOKEN"] = credentials.token
    is_virtual = settings.addressing_style == "virtual"
    if is_virtual:
        options["AWS_VIRTUAL_HOSTED_STYLE_REQUEST"] = "true"
    if _is_custom(s3.endpoint):
        scheme, host, path, _, _ = urlsplit(s3.endpoint)
        # object_store takes the endpoint of a virtual host with its bucket.
        bucket = f"{split_uri(uri)[0]}." if is_virtual else ""
        options["AWS_ENDPOINT_URL"] = f"{scheme}://{bucket}{host}{path.rstrip('/')}"
        options["AWS_ALLOW_HTTP"] = str(scheme == "http").lower()
    return options


def arrow_filesystem(s3: S3Backend) -> "S3FileSystem":
    """An Arrow filesystem whose paths are ``bucket/key``."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    settings, credentials = s3.settings, s3.credentials()
    scheme, host, path, _, _ = urlsplit(s3.endpoint)
    return S3FileSystem(
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        session_token=credentials.token,
        region=s3.region,
        scheme="http" if scheme == "http" else "https",
        endpoint_override=host + path.rstrip("/") if _is_custom(s3.endpoint) else None,
        force_virtual_addressing=settings.addressing_style == "virtual",
        connect_timeout=settings.connect_timeout_s,
        request_timeout=settings.read_timeout_s,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=settings.max_attempts),
    )


def _is_custom(endpoint: str) -> bool:
    """Whether the endpoint is not one that every AWS client derives from the region."""
    host = urlsplit(endpoint).hostname or ""
    return ".vpce." in host or not host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
