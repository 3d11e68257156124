"""Where facereel runs: storage, tracking and cluster settings from arguments, environment and a YAML file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from infra.errors import UserError

ENV_PREFIX = "FACEREEL_"
ENV_DELIMITER = "__"
ENV_NONE = "null"
DEFAULT_CONFIG = Path("facereel.yaml")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class StorageSettings(_Section):
    """How S3-compatible storage is reached; local paths need none of it.

    What is unset is left to boto3's own chain (``AWS_*`` variables, profiles, instance roles).
    """

    endpoint_url: str | None = Field(
        None, pattern=r"^https?://[^\s/]+(/\S*)?$", description="http(s) address of the server; unset: AWS"
    )
    region: str | None = Field(None, description="region of the buckets; unset: boto3's own, else us-east-1")
    access_key_id: str | None = Field(None, description="access key; unset: boto3's own credential chain")
    secret_access_key: SecretStr | None = Field(None, description="secret that belongs to access_key_id")
    session_token: SecretStr | None = Field(None, description="token of temporary credentials")
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", description="bucket in the path or in the host name; auto: path on custom endpoints"
    )
    connect_timeout_s: float = Field(5.0, gt=0, description="longest wait for a connection, seconds")
    read_timeout_s: float = Field(30.0, gt=0, description="longest wait for the next bytes of an answer, seconds")
    max_attempts: int = Field(4, ge=1, description="tries of one request, the first included")
    max_pool_connections: int = Field(16, ge=1, description="connections that one process keeps to the server")
    read_ahead_bytes: int = Field(
        1 << 20, ge=1, description="bytes of a reader's first request; sequential reads grow it up to 4 times"
    )

    @model_validator(mode="after")
    def _check_credentials(self) -> "StorageSettings":
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key belong together: give both or neither")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token needs access_key_id and secret_access_key")
        return self


class TrackingSettings(_Section):
    """Where runs and registered scorers are kept."""

    uri: str = Field("sqlite:///mlflow.db", min_length=1, description="MLflow tracking and registry store")
    experiment: str = Field("facereel", min_length=1, description="MLflow experiment that runs are logged to")


class ClusterSettings(_Section):
    """Which Ray cluster jobs run on."""

    address: str | None = Field(
        None, description="address of a running cluster; unset: the cluster of the submitted job, else a local one"
    )
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a local cluster; unset: all of the machine")
    object_store_bytes: int | None = Field(
        None, ge=78_643_200, description="object store of a local cluster, bytes (Ray's minimum: 75 MiB)"
    )


class PriceSettings(_Section):
    """What the cluster costs, for the metric ``facereel_score_cost``; 0: not counted. Any currency, one for all."""

    cpu_hour: float = Field(0.0, ge=0, description="price of a logical CPU for an hour")
    gpu_hour: float = Field(0.0, ge=0, description="price of a GPU for an hour")
    read_gb: float = Field(0.0, ge=0, description="price of 1e9 bytes read from storage, requests included")


class ServingSettings(_Section):
    """What the service answers, with which scorers, and what a request may cost."""

    tasks: tuple[str, ...] = Field((), description="tasks to answer; empty: every task with a champion")
    device: str = Field("auto", description="device of the scorers: auto, cpu, cuda")
    poll_s: float = Field(10.0, gt=0, description="seconds between looks at the registry for another champion")
    challenger_share: float = Field(
        0.0, ge=0, le=1, description="share of requests that the challenger answers (canary), where there is one"
    )
    shadow_share: float = Field(
        0.0, ge=0, le=1, description="share of requests that the challenger sees too, its answer only logged"
    )
    max_batch_faces: int = Field(64, ge=1, description="most faces that go through a network at once")
    num_replicas: int = Field(1, ge=1, description="replicas that hold the scorers, at least")
    max_replicas: int = Field(1, ge=1, description="replicas at most; more than num_replicas: scaled by load")
    num_cpus: float = Field(1.0, ge=0, description="CPUs of each replica")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of each replica; a part (0.25) shares one")
    num_decoders: int = Field(1, ge=0, description="replicas that decode videos, one CPU each; 0: the scorers' decode")
    max_decoders: int = Field(1, ge=0, description="replicas that decode videos, at most")
    max_running: int = Field(16, ge=1, description="requests that a replica works on at once")
    max_waiting: int = Field(32, ge=0, description="requests that wait in a replica; beyond: 429 at once")
    retry_after_s: int = Field(1, ge=1, description="what a refused client is told to wait, seconds")
    max_image_bytes: int = Field(20 << 20, ge=1, description="largest image, bytes")
    max_video_bytes: int = Field(200 << 20, ge=1, description="largest video in a request, bytes")
    max_pixels: int = Field(50_000_000, ge=1, description="most pixels in a picture, width × height")
    max_duration_s: float = Field(600.0, gt=0, description="longest video, seconds")
    max_frames: int = Field(64, ge=1, description="most frames that a scorer's frame policy may want of a video")
    max_body_s: float = Field(30.0, gt=0, description="longest time for a request's body to arrive, seconds")
    max_request_s: float = Field(60.0, gt=0, description="longest time for an answer, seconds")
    buckets: tuple[str, ...] = Field(
        (), description="prefixes (s3://bucket/prefix, a folder) that requests may name objects in; empty: none"
    )
    batches: str | None = Field(None, description="folder or s3:// prefix of batches and their results; unset: none")
    dashboard: str | None = Field(None, description="address of Ray's job API for batches; unset: this cluster's own")
    api_keys: Path | None = Field(
        None, description="file of hashed API keys (python -m serve keys add NAME); needed beyond loopback"
    )
    rate: str = Field("600/minute", description="requests that a key may make, as 10/second or 600/minute")
    max_batch_videos: int = Field(100_000, ge=1, description="most videos in the list of a batch request")

    @field_validator("buckets")
    @classmethod
    def _check_prefixes(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            if not prefix.removeprefix("s3://").strip("/") or (":" in prefix and not prefix.startswith("s3://")):
                raise ValueError(f"{prefix!r} is neither s3://bucket/prefix nor a folder")
        return prefixes

    @model_validator(mode="after")
    def _check_numbers(self) -> "ServingSettings":
        if self.max_replicas < self.num_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is less than num_replicas={self.num_replicas}")
        if self.max_decoders < self.num_decoders:
            raise ValueError(f"max_decoders={self.max_decoders} is less than num_decoders={self.num_decoders}")
        return self


class Settings(BaseSettings):
    """The settings tree; build it with `load_settings`.

    Instances are frozen and picklable, so they travel to workers as they are; `to_env` carries them to a new process.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        env_ignore_empty=True,
        env_parse_none_str=ENV_NONE,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    config: Path | None = Field(None, description="YAML file with further settings; unset: facereel.yaml if it exists")
    storage: StorageSettings = Field(default_factory=lambda: StorageSettings(), description="object storage")
    tracking: TrackingSettings = Field(default_factory=lambda: TrackingSettings(), description="MLflow")
    cluster: ClusterSettings = Field(default_factory=lambda: ClusterSettings(), description="Ray")
    serving: ServingSettings = Field(default_factory=lambda: ServingSettings(), description="the service")
    prices: PriceSettings = Field(default_factory=lambda: PriceSettings(), description="what the cluster costs")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over YAML; defaults last."""
        path = _config_path(init_settings())
        from_yaml = InitSettingsSource(settings_cls, _read_yaml(path) if path else {})
        return init_settings, env_settings, from_yaml

    def to_env(self) -> dict[str, str]:
        """The environment variables that give another process exactly these settings, secrets included."""
        variables = {f"{ENV_PREFIX}CONFIG": os.devnull}
        for section, fields in self.model_dump(exclude={"config"}).items():
            for key, value in fields.items():
                plain = value.get_secret_value() if isinstance(value, SecretStr) else value
                text = json.dumps(plain) if isinstance(plain, tuple) else str(plain)
                variables[f"{ENV_PREFIX}{section}{ENV_DELIMITER}{key}".upper()] = ENV_NONE if plain is None else text
        return variables


def load_settings(config: str | Path | None = None, **sections: Mapping[str, Any]) -> Settings:
    """Read the settings: ``sections`` over ``FACEREEL_*`` variables over the YAML file over defaults.

    Args:
        config: the YAML file; unset: ``FACEREEL_CONFIG``, else ``facereel.yaml`` where it exists.
        **sections: values that win over all else, as ``storage={"region": "eu-west-1"}``.

    Raises:
        UserError: for a file that cannot be read, an unknown key or a value against its rule; names source and key.
    """
    given: dict[str, Any] = {name: dict(values) for name, values in sections.items()}
    if config is not None:
        given["config"] = config
    _refuse_unknown_variables()
    try:
        return Settings(**given)
    except SettingsError as error:
        raise UserError(f"environment: {error}; give one value a variable, as FACEREEL_STORAGE__REGION") from error
    except ValidationError as error:
        raise UserError("; ".join(_explain(item, given) for item in error.errors())) from error


def secret_fields() -> list[tuple[str, str]]:
    """Section and key of every field that holds a secret."""
    return [
        (section, key)
        for section, field in Settings.model_fields.items()
        for key, inner in getattr(field.annotation, "model_fields", {}).items()
        if "Secret" in str(inner.annotation)
    ]


def _config_path(given: Mapping[str, Any]) -> Path | None:
    named = given.get("config") or os.environ.get(f"{ENV_PREFIX}CONFIG")
    if named:
        return Path(named)
    return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: the settings file cannot be read ({error}); fix the path in {ENV_PREFIX}CONFIG"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: the settings file is no YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(section, str) for section in values):
        raise UserError(f"{path}: a settings file maps sections to values; sections are {_sections()}")
    if "config" in values:
        raise UserError(f"{path}: 'config' cannot stand in a settings file; name the file in {ENV_PREFIX}CONFIG")
    return {section.lower(): _fields(fields) for section, fields in values.items()}


def _fields(section: Any) -> Any:
    """A section with text as keys; one with every line commented out means its defaults."""
    if isinstance(section, dict):
        return {str(key): value for key, value in section.items()}
    return {} if section is None else section


def _refuse_unknown_variables() -> None:
    """Refuse ``FACEREEL_STORGE__REGION``: pydantic-settings sees only variables of sections that exist."""
    for name in os.environ:
        section, delimiter, _ = name.upper().removeprefix(ENV_PREFIX).partition(ENV_DELIMITER)
        if name.upper().startswith(ENV_PREFIX) and delimiter and section.lower() not in Settings.model_fields:
            raise UserError(f"environment variable {name}: unknown section; sections are {_sections()}")


def _explain(error: Any, given: Mapping[str, Any]) -> str:
    """One line for one pydantic error: where the value came from, its key, the rule and, unless secret, the value."""
    section, *keys = (str(part) for part in error["loc"])
    field = Settings.model_fields.get(section)
    fields: dict[str, Any] = getattr(field.annotation, "model_fields", {}) if field else {}
    source = _source(section, keys, given)
    if error["type"] == "extra_forbidden":
        return f"{source}: {'.'.join([section, *keys])}: unknown key; known here: {', '.join(fields) or _sections()}"
    rule = str(error["msg"]).removeprefix("Value error, ")
    is_secret = not keys or keys[0] not in fields or "Secret" in str(fields[keys[0]].annotation)
    return f"{source}: {'.'.join([section, *keys])}: {rule}" + ("" if is_secret else f", got {error['input']!r}")


def _source(section: str, keys: list[str], given: Mapping[str, Any]) -> str:
    """What a value was taken from: the first source, by precedence, that has it; all of them for a whole section."""
    variable = ENV_PREFIX + ENV_DELIMITER.join(part.upper() for part in [section, *keys])
    sources = ["arguments"] if _has(given, [section, *keys]) else []
    sources += [
        f"environment variable {name}"
        for name in sorted(os.environ)
        if name.upper() == variable or name.upper().startswith(variable + ENV_DELIMITER)
    ]
    path = _config_path(given)
    if path and _has(_read_yaml(path), [section, *keys]):
        sources.append(str(path))
    return sources[0] if keys else " + ".join(sources)


def _has(values: Any, keys: list[str]) -> bool:
    for part in keys:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _sections() -> str:
    return ", ".join(name for name in Settings.model_fields if name != "config")
