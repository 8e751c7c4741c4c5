"""Settings: the only reader of the environment. FEDSTAC_… beside PostgreSQL's own PG… names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import platformdirs
from dotenv import dotenv_values
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

HERE: Final = Path(__file__).resolve().parent
PREFIX: Final = "FEDSTAC_"
ENV_FILE: Final = ".env"


class Misconfigured(Exception):
    """A setting is wrong; the message names its variable and the remedy."""


class NoHome(Misconfigured):
    """The user has no home folder, so that nothing can be kept there."""

    def __init__(self) -> None:
        super().__init__("this user has no home folder: set HOME")


class Settings(BaseSettings):
    """Everything an operator can set. Each field is read from FEDSTAC_<NAME>, or a .env file."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=ENV_FILE, extra="ignore", frozen=True)

    dsn: str = Field("", description="PostgreSQL connection URL of the writer; empty: PGHOST, PGDATABASE, PGUSER, …")
    read_dsn: str = Field("", description="Connection URL of a streaming standby that answers searches; empty: none")
    owner_dsn: str = Field("", description="Connection URL of the owner, for `fedstac migrate`; empty: PGHOST, …")
    sequencer_dsn: str = Field("", description="Connection URL of the sequencer; empty: the writer's")
    auditor_dsn: str = Field("", description="Connection URL for `fedstac audit`; empty: the writer's")
    deleter_dsn: str = Field("", description="Connection URL for `fedstac person`; empty: the owner's")
    audit_key: str = Field("", description="Secret that signs checkpoints of the audit log; empty: they are not signed")
    node: str = Field("local", pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$", description="This node's name, its origin")
    public_url: str = Field("", description="The address that clients see; links start with it. Empty: host and port")
    proxy_path: str = Field(
        "auto",
        pattern="^(auto|stripped|kept)$",
        description="What the proxy does with the path of the public URL: stripped, kept; auto: either (operations.md)",
    )
    contact: str = Field("", description="Whom callers may ask, as messages name it: an address of mail or a page")
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one")
    processes: int = Field(
        1, ge=1, le=64, description="API processes that share the port; the first runs the other parts"
    )
    pool_size: int = Field(10, ge=2, le=200, description="Database connections of a process for writes and workers")
    reader_pool_size: int = Field(
        0, ge=0, le=200,
        description="Connections of an api process for reads with a valid token; 0: one a processor, 2 to 8",
    )  # fmt: skip
    anonymous_pool_size: int = Field(
        0, ge=0, le=200,
        description="Connections of an api process for reads without one; 0: one a processor, 2 to 8. One more is for"
        " /healthcheck",
    )  # fmt: skip
    request_seconds: float = Field(
        20,
        ge=1,
        le=600,
        description="How long a request, such as a search, may be worked on; then it ends and is answered with 503",
    )
    event_streams: int = Field(100, ge=0, le=10_000, description="Streams of events that an api process serves at once")
    request_memory_bytes: int = Field(
        64 << 20,
        ge=16 << 20,
        description="Memory for large bodies and answers that are under way at once; beyond it, 429 or 503",
    )
    run_workers: bool = Field(True, description="Publish workers and the sequencer run inside the api process")
    workers: int = Field(2, ge=1, le=16, description="Publish workers in one process")
    batch: int = Field(250, ge=1, le=5000, description="Items a worker publishes in one transaction")
    lease_seconds: float = Field(30, ge=1, le=600, description="How long a worker's claim of a shard holds")
    default_wait_seconds: float = Field(
        0, ge=0, le=60, description="How long a POST waits for its result without `Prefer: wait`; 0: answer 202 at once"
    )
    require_if_match: bool = Field(False, description="Changes of a dataset need the header If-Match (else 428)")
    max_item_bytes: int = Field(4 << 20, description="Largest body of a single item")
    max_batch_bytes: int = Field(64 << 20, description="Largest body of a batch, also after decompression")
    max_batch_items: int = Field(5000, description="Most items in one request")
    read_timeout_seconds: float = Field(15, gt=0, description="Longest pause while a request's headers or body arrive")
    matched_exact_to: int = Field(
        1000, ge=0, description="numberMatched is exact up to here where PostgreSQL counts; from columns it always is"
    )
    columns: bool = Field(
        True,
        description="Searches are answered from columns in the memory of the api process, about 130 bytes a dataset",
    )
    document_cache_bytes: int = Field(
        32 << 20,
        ge=0,
        description="Memory for datasets that searches showed of late, in each api process; half as much comes on top"
        " for answers about one; 0: none",
    )
    search_limit: int = Field(10, ge=1, description="Items a page of a search that names no limit")
    max_search_limit: int = Field(
        10_000, ge=1, description="Most items a page of a search; a larger limit counts as this one"
    )
    token_key: str = Field("", description="Secret that signs paging tokens; empty: the one kept in the database")
    cv_folder: str = Field("", description="Folder of vocabulary snapshots instead of those that ship with fedstac")
    cv_pins: dict[str, str] = Field(
        {}, description="Projects that stay with a version of their vocabulary, as JSON; the others take the newest"
    )
    issuers: str = Field("", description="Identity providers: a JSON array, or a file with one (operations.md)")
    audience: str = Field("", description="What tokens of identity providers have to name as `aud`")
    groups_claim: str = Field("groups", min_length=1, description="The claim with a caller's groups; a.b is b inside a")
    admin_group: str = Field("", description="Members of this group are administrators; empty: nobody is by a group")
    policy: str = Field("", description="YAML file that says who may do what (operations.md, Policy); empty: by roles")
    globus_policy: str = Field("", description="File that says which Globus group publishes for which institution")
    scope: str = Field("openid profile email", description="What GET /scope tells ESGF's publisher to ask for")
    token_leeway_seconds: float = Field(30, ge=0, le=300, description="How far clocks of identity providers may be off")
    keep_events_days: float = Field(
        7,
        ge=0,
        le=3650,
        description="Events are kept for so long, and until all nodes and required sinks have them",
    )
    unsent_seconds: float = Field(
        86_400, gt=0, description="Batches are refused while events wait so long for the sequencer or a required sink"
    )
    unsent_bytes: int = Field(20 << 30, gt=0, description="Batches are refused while so many bytes of events wait")
    node_lapse_days: float = Field(
        30, gt=0, le=3650, description="A node that is so far behind lapses: the log is no longer kept for it"
    )
    sink_lapse_days: float = Field(
        7, gt=0, le=3650, description="A required sink that is so far behind lapses: the log is no longer kept for it"
    )
    dapr_api_token: str = Field(
        "", repr=False, description="What the Dapr sidecar on this machine asks for; sinks dapr+http:// send it"
    )
    dapr_reports: str = Field(
        "",
        pattern=r"^(\S+/\S+( +\S+/\S+)*)?$",
        description="Topics by which a Dapr sidecar brings reports on deletions: pubsub/topic, with spaces between",
    )
    hubs: str = Field(
        "",
        description="Brokers that readers may use, for the landing page and AsyncAPI: kafka://host:port/topic?format=ogc"
        " or nats://host:port/STREAM, with spaces between",
    )
    smtp: str = Field(
        "",
        repr=False,
        description="Mail server: smtp://host, smtp+starttls://user:password@host, smtps://…; empty: no mail",
    )
    mail_from: str = Field("", description="Sender of mail; empty: fedstac@ the host of the public URL")
    alerts: tuple[str, ...] = Field(
        (), description="Where operators are told of failures, as JSON: mailto:…, https://…, slack+https://…"
    )
    notify_hosts: tuple[str, ...] = Field(
        (), description="Hosts of webhooks and domains of mail that need no confirmation, as JSON; * for any characters"
    )
    notify_private: bool = Field(False, description="Webhooks may go to private addresses, and by http")
    webhook_networks: tuple[str, ...] = Field(
        (),
        description="Private networks that webhooks of subscriptions may lead to, also by http, as JSON: "
        '["10.20.0.0/16"]',
    )
    webhook_rights_days: int = Field(
        30, ge=1, description="After so many days an owner with groups of an identity provider puts a webhook again"
    )
    notify_window_seconds: float = Field(
        30, ge=0, le=86400, description="What happens within this is told together, in one message"
    )
    notify_per_hour: int = Field(
        20, ge=1, description="Messages to one destination; what is beyond is told together later"
    )
    source: str = Field(
        "",
        description="For an index or replica node: the address of the publishing node; of several, with spaces between",
    )
    source_token: str = Field(
        "",
        repr=False,
        description="For an index or replica node: its token at the source; of several, in the order of these; empty "
        "at a replica node: its own identity",
    )
    source_feed: str = Field(
        "",
        description="What brings a source's events: http, nats://host:port/STREAM or kafka://host:port/topic; of "
        "several, in the order of these, with spaces between. Empty: http, the node's own feed. A topic of ESGF beside "
        "them: kafka://host:port/topic?format=esgf&origin=name",
    )
    snapshot_first: bool = Field(True, description="A new index node, or replica node, starts from a snapshot")
    replica_policy: str = Field(
        "", description="For a replica node: policy file that says what it copies from where (replication.md, Policy)"
    )
    replica_folder: str = Field(
        "", description="For a replica node: the folder of its files, which is served; restricted ones are beside it"
    )
    replica_url: str = Field(
        "", description="For a replica node: the address under which others find its folder; announced hrefs begin so"
    )
    replica_workers: int = Field(
        4, ge=1, le=64, description="For a replica node: files fetched at once by one process; each is a connection"
    )
    replica_block_bytes: int = Field(
        8 << 20, ge=64 << 10, le=1 << 30,
        description="For a replica node: bytes of a file that may be fetched again after a crash",
    )  # fmt: skip
    replica_token: str = Field(
        "", repr=False, description="For a replica node: its token for announcements; empty: by its client credentials"
    )
    replica_client_id: str = Field("", description="For a replica node: its client id at its identity provider")
    replica_client_secret: str = Field("", repr=False, description="For a replica node: its secret there")
    replica_issuer: str = Field("", description="For a replica node: the address of its identity provider")
    replica_globus_collection: str = Field(
        "", description="For a replica node: the id of its Globus collection, whose root is FEDSTAC_REPLICA_FOLDER"
    )
    replica_globus_client_id: str = Field(
        "", description="For a replica node: its client id at Globus, which may write to the collection"
    )
    replica_globus_client_secret: str = Field("", repr=False, description="For a replica node: its secret at Globus")
    replica_brake_percent: float = Field(
        1.0, ge=0, le=100,
        description="For a replica node: a share of dark, or of bad, files above which verify repairs nothing",
    )  # fmt: skip
    replica_dark_days: float = Field(
        28.0, ge=0, description="For a replica node: days after its last change before verify may delete a dark file"
    )
    snapshot_folder: str = Field(
        "", description="Folder that `fedstac snapshot write` fills, for GET /snapshot?format=geoparquet; empty: none"
    )
    console: bool = Field(True, description="`fedstac serve` has the web console at /console (console.md)")
    url: str = Field("", description="For clients: the address of the server")
    token: str = Field("", description="For clients: the bearer token")
    retries: int = Field(5, ge=0, le=100, description="For clients: how often what fails for the moment is tried again")
    debug: bool = Field(False, description="Commands that fail show where in the code")
    compress: bool = Field(True, description="Answers from 2 KiB on are compressed (brotli, gzip) for who asks for it")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of a process without an API for metrics and /livez, on FEDSTAC_HOST"
    )
    access_log: bool = Field(True, description="One log line for each request")
    log_format: str = Field("auto", pattern="^(auto|json|console)$", description="Form of the log lines")


class ProcessVariables(BaseSettings):
    """What one process of fedstac, or a test, says to another that it starts. Operators set none of it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    die_with: int = Field(0, description="The pid of the parent to end with; 0: none")
    failpoints: str = Field("", description="MODULE:WORDS of a test's module that acts at failpoints")
    replica_secrets: dict[str, str] = Field(
        {}, repr=False, description="For the demo's identity provider: secrets of replica nodes by client id, as JSON"
    )


class PostgresVariables(BaseSettings):
    """PostgreSQL's own variables, as far as messages repeat them; the drivers read them all."""

    model_config = SettingsConfigDict(env_prefix="PG", env_ignore_empty=True, extra="ignore", frozen=True)

    user: str = "postgres"
    database: str = ""
    host: str = "localhost"
    port: str = "5432"


@lru_cache
def load() -> Settings:
    """Return the settings of this process."""
    return Settings()


# --- what else the environment says ---


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable that looks like a setting and has no effect; `nearest` is the setting that may be meant."""

    name: str
    nearest: str | None

    def __str__(self) -> str:
        return f"{self.name} has no effect" + (f"; did you mean {self.nearest}?" if self.nearest else "")


def unknown_variables() -> list[UnknownVariable]:
    """Return the variables FEDSTAC_… of the environment and of the file `.env` that are no settings."""
    names = [variable_of(field) for model in (Settings, ProcessVariables) for field in model.model_fields]
    present = {name.upper() for name in (*os.environ, *dotenv_values(ENV_FILE))}
    unknown = sorted(name for name in present if name.startswith(PREFIX) and name not in names)
    if not unknown:
        return []
    from fedstac.domain.wording import nearest  # it takes time to load, which most commands need not spend

    return [UnknownVariable(name, nearest(name, names)) for name in unknown]


def variable_of(field: str) -> str:
    """Return the name of the variable that a setting is read from."""
    return PREFIX + field.upper()


def environment_of_children() -> dict[str, str]:
    """Return the environment without settings of fedstac and PostgreSQL, for processes with settings of their own."""
    return {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "PG"))}


OF_NETWORK: Final = (
    *(name for each in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY") for name in (each, each.lower())),
    "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # what httpx reads  # fmt: skip


def network_variables() -> list[str]:
    """Return the variables of proxies and certificates that are set."""
    return [name for name in OF_NETWORK if os.environ.get(name)]


# --- folders; NoHome where a user has none ---


def folder(name: str) -> Path:
    """Return a folder of the package: `migrations`, `cv`, `extensions`, `examples`. That of a checkout comes first."""
    root = HERE.parents[1]
    return root / name if (root / "pyproject.toml").is_file() else HERE / name


def config_folder() -> Path:
    """Return where a user's logins are kept."""
    return _of_user(platformdirs.user_config_path("fedstac"))


def data_folder() -> Path:
    """Return where a user's data is kept: that of `fedstac demo`."""
    return _of_user(platformdirs.user_data_path("fedstac"))


def state_folder() -> Path:
    """Return where a user's commands remember how far they are."""
    return _of_user(platformdirs.user_state_path("fedstac"))


def _of_user(path: Path) -> Path:
    if not path.is_absolute():  # platformdirs leaves the ~ where it stands
        raise NoHome
    return path
