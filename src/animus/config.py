"""Settings of the server: environment variables that start with `ANIMUS_`, each documented here.

Secrets are read from files too: `ANIMUS_DATABASE_URL_FILE` for `ANIMUS_DATABASE_URL`, and so on.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator


def default_data_dir() -> Path:
    """Where data are kept unless said otherwise: of root `/var/lib/animus`, else below the user's data directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/animus")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "animus"


class Settings(BaseModel):
    """How a server runs."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    data_dir: Path = Field(default_factory=default_data_dir, description="Embedded database, keys, first token.")
    database_url: SecretStr = Field(
        default=SecretStr(""), description="PostgreSQL of the service role; empty for the embedded one."
    )
    owner_database_url: SecretStr = Field(
        default=SecretStr(""), description="PostgreSQL of the owner role, for `animus migrate` and break-glass."
    )
    log_dir: Path | None = Field(
        default=None,
        description="Keys of the audit log and the signer's state, outside the database; empty: `log` in data_dir.",
    )
    log_name: str = Field(
        default="",
        description="Name of the instance in its logs, such as animus.example; used at the first start, then kept.",
    )
    log_policy_file: Path | None = Field(
        default=None, description="C2SP tlog-policy: the witnesses whose cosignatures are taken."
    )
    issuers_file: Path | None = Field(
        default=None, description="JSON: the OpenID Connect issuers whose JWT are taken; empty: none."
    )
    pgbouncer: bool = Field(default=False, description="Set for pgbouncer in transaction mode: no prepared statements.")
    pool_size: int = Field(default=20, ge=2, le=500, description="Database connections at most.")
    call_slots: int = Field(
        default=4,
        ge=2,
        le=400,
        description="Calls that work at once; half of them of one project at most. No more than pool_size less 6.",
    )
    rate_per_second: int = Field(
        default=500, ge=0, le=100_000, description="Calls a second of one caller in the long run; 0 for any."
    )
    rate_burst: int = Field(
        default=1_000, ge=1, le=100_000, description="Calls at once of a caller that has been quiet."
    )
    grpc_host: str = Field(default="127.0.0.1", description="Address of gRPC.")
    grpc_port: int = Field(default=7443, ge=0, le=65_535, description="Port of gRPC; 0 for any.")
    gateway: bool = Field(default=True, description="Serve HTTP/JSON in this process too.")
    gateway_host: str = Field(default="127.0.0.1", description="Address of HTTP.")
    gateway_port: int = Field(default=8080, ge=0, le=65_535, description="Port of HTTP; 0 for any.")
    metrics_host: str = Field(default="127.0.0.1", description="Address of Prometheus metrics.")
    metrics_port: int = Field(default=9464, ge=0, le=65_535, description="Port of Prometheus metrics; 0 for any.")
    tls_certificate_file: Path | None = Field(
        default=None,
        description="PEM: certificate of gRPC, HTTP and metrics, and its CAs but the root; empty: plain text.",
    )
    tls_key_file: Path | None = Field(default=None, description="PEM: its key, readable by nobody else.")
    tls_client_ca_file: Path | None = Field(
        default=None, description="PEM: CAs of client certificates; empty: none are taken."
    )
    mtls_port: int = Field(
        default=7444,
        ge=0,
        le=65_535,
        description="Port of gRPC that requires a client certificate, where there are CAs of them; 0 for any.",
    )
    gateway_allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="Host names that HTTP is served for, with commas; empty: loopback names on loopback, else any.",
    )
    gateway_allowed_origins: tuple[str, ...] = Field(
        default=(),
        description="Origins whose pages may call (CORS), such as https://ui.example, with commas; empty: none.",
    )
    insecure_bind: bool = Field(
        default=False, description="Allow plain text on addresses other than loopback: anyone on the way reads tokens."
    )
    reflection: bool = Field(default=False, description="Serve gRPC reflection without a token.")
    max_message_bytes: int = Field(default=16 << 20, ge=1 << 20, le=64 << 20, description="Largest request.")
    call_timeout_seconds: float = Field(default=30.0, gt=0, le=300, description="Longest a call may take.")
    stream_timeout_seconds: float = Field(default=3_600.0, gt=0, le=86_400, description="Longest a stream may take.")
    drain_seconds: float = Field(default=10.0, ge=0, le=300, description="Longest wait for open calls after SIGTERM.")
    page_token_key: SecretStr = Field(
        default=SecretStr(""),
        description="64 hexadecimal digits that replicas share; empty: kept in data_dir.",
    )
    otlp_endpoint: str = Field(
        default="", description="OTLP/HTTP collector, such as http://collector:4318; empty: off."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level of logs.")
    log_format: Literal["json", "text"] = Field(default="json", description="`json` for machines, `text` for people.")

    @field_validator("gateway_allowed_hosts", "gateway_allowed_origins", mode="before")
    @classmethod
    def _by_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator(
        "log_dir",
        "log_policy_file",
        "issuers_file",
        "tls_certificate_file",
        "tls_key_file",
        "tls_client_ca_file",
        mode="before",
    )
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None  # not the working directory, which an empty path is


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of an environment. Raises ValueError naming the variable at fault, never its value."""
    environ = os.environ if environ is None else environ
    values: dict[str, str] = {}
    for name in Settings.model_fields:
        variable = f"ANIMUS_{name.upper()}"
        if variable in environ:
            values[name] = environ[variable]
        elif f"{variable}_FILE" in environ:
            try:
                values[name] = Path(environ[f"{variable}_FILE"]).read_text().strip()
            except OSError as error:
                raise ValueError(f"{variable}_FILE: {error.strerror}") from None
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        faults = [f"ANIMUS_{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()]
        raise ValueError("; ".join(faults)) from None
