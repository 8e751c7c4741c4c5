"""Apache Kafka for `fedstac demo` and the tests: its jars, fetched once by Maven, and a broker in KRaft mode.

The versions are in docker/kafka/pom.xml, the digests of the jars in libs.sha256 beside it, the broker's configuration
in server.properties.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fedstac import settings
from fedstac.demo.brokers import BrokerFailed, BrokerMissing, BrokerProcess, free_port, start_on_port

ARCHIVE = "kafka.jsa"  # classes as the JVM wants them: a broker starts in a third of the time
JVM = (
    "-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)  # fmt: skip
# What differs from a broker that stays: one that was killed is to be back at once.
IN_TESTS: Mapping[str, str] = {"broker.session.timeout.ms": "1000", "broker.heartbeat.interval.ms": "200"}
MAVEN_SECONDS = 600


def _silent(_line: str) -> None:
    pass


# --- jars


def install(progress: Callable[[str], None] = _silent) -> Path:
    """Return the folder of Kafka's jars, each with the digest that libs.sha256 has; fetch them if they are not there.

    BrokerMissing where there is no Java or Maven, or Maven gets other bytes.
    """
    folder = jars_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            progress("Fetching Apache Kafka with Maven (43 MB, once)")
            with tempfile.TemporaryDirectory(prefix="kafka-", dir=folder.parent) as unfinished:
                jars = Path(unfinished) / "libs"
                fetch(jars)
                _check(jars)
                jars.rename(folder)
        _check(folder)
        if not (folder / ARCHIVE).exists():
            progress("Making the archive of Kafka's classes (once)")
            _archive_classes(folder)
    return folder


def jars_folder() -> Path:
    """Return where the jars of this list of digests are kept, for all checkouts of a user."""
    return settings.data_folder() / f"kafka-{hashlib.sha256(_sums().read_bytes()).hexdigest()[:12]}"


def fetch(folder: Path) -> None:
    """Put the jars that pom.xml names into a folder. BrokerMissing says why that fails."""
    maven = _program("mvn", "maven")
    command = [
        maven, "--batch-mode", "--no-transfer-progress", "--strict-checksums", "--quiet",
        "--file", str(_configuration() / "pom.xml"), "dependency:copy-dependencies",
        f"-DoutputDirectory={folder}", "-DincludeScope=runtime",
    ]  # fmt: skip
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MAVEN_SECONDS, check=False
    )
    if result.returncode != 0:
        lines = [line for line in result.stdout.splitlines() if line.strip()]
        raise BrokerMissing("\n".join(["Maven could not fetch Apache Kafka:", *lines[-5:]]))


def sums_of(folder: Path) -> str:
    """Return the digests of a folder's jars, as sha256sum writes them."""
    jars = sorted(folder.glob("*.jar"))
    return "".join(f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n" for jar in jars)


def _check(folder: Path) -> None:
    wrong = set(sums_of(folder).splitlines()) ^ set(_sums().read_text().splitlines())
    if wrong:
        names = sorted({line.split()[-1] for line in wrong})
        raise BrokerMissing(
            f"the jars of Apache Kafka in {folder} are not those of {_sums()}: {', '.join(names[:5])}. "
            f"Remove the folder and start again"
        )


def _archive_classes(jars: Path) -> None:
    """Start a broker once, for the JVM to keep its classes in the form that it loads fastest."""
    with tempfile.TemporaryDirectory(prefix="fedstac-kafka-") as folder:
        broker = _started(Path(folder), jars, None, f"-XX:ArchiveClassesAtExit={jars / ARCHIVE}")
        broker.process.stop()


def _configuration() -> Path:
    return settings.folder("docker/kafka")


def _sums() -> Path:
    return _configuration() / "libs.sha256"


def _program(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BrokerMissing(
            f"Apache Kafka needs Java 17 or newer and, the first time, Maven; there is no {name}: "
            f"apt-get install -y --no-install-recommends {package}"
        )
    return path


# --- the broker


@dataclass(slots=True)
class KafkaBroker:
    """A broker that is its own controller."""

    folder: Path
    process: BrokerProcess
    _jars: Path

    @property
    def address(self) -> str:
        """Host and port, as clients want them."""
        return f"127.0.0.1:{self.process.port}"

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    def empty(self) -> None:
        """Remove everything that a broker which has ended has stored."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        _format(self.folder, self._jars)


@contextmanager
def kafka_broker(
    folder: Path, *, port: int | None = None, progress: Callable[[str], None] = _silent
) -> Iterator[KafkaBroker]:
    """Yield a broker that keeps its data in a folder. BrokerMissing where Kafka cannot be had."""
    jars = install(progress)
    progress("Starting Apache Kafka")
    broker = _started(folder, jars, port, f"-XX:SharedArchiveFile={jars / ARCHIVE}")
    try:
        yield broker
    finally:
        broker.process.stop()


def _started(folder: Path, jars: Path, port: int | None, archive: str) -> KafkaBroker:
    folder.mkdir(parents=True, exist_ok=True)
    java = _program("java", "default-jre-headless")

    def at(client_port: int) -> BrokerProcess:
        properties = _write_properties(folder, client_port, free_port())
        if not (folder / "data" / "meta.properties").exists():
            _format(folder, jars)
        command = (java, *JVM, archive, "-cp", f"{jars}/*", "kafka.Kafka", str(properties))
        return BrokerProcess("the Kafka broker", command, folder / "kafka.log", client_port, _readiness(client_port))

    process = start_on_port(at, port)
    return KafkaBroker(folder, process, jars)


def _write_properties(folder: Path, port: int, controller_port: int) -> Path:
    """Write the configuration of docker/kafka for this folder and these ports."""
    ours = {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "log.dirs": str(folder / "data"),
        **IN_TESTS,
    }
    text = (_configuration() / "server.properties").read_text()
    for name, value in ours.items():
        line = f"{name}={value}"
        text, times = re.subn(rf"(?m)^{re.escape(name)}=.*$", line.replace("\\", r"\\"), text)
        text += "" if times else f"{line}\n"
    path = folder / "server.properties"
    path.write_text(text)
    return path


def _format(folder: Path, jars: Path) -> None:
    """Make an empty log, as Kafka wants it before the first start."""
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    command = [
        _program("java", "default-jre-headless"), *JVM, f"-XX:SharedArchiveFile={jars / ARCHIVE}", "-Xshare:auto",
        "-cp", f"{jars}/*", "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}",
        f"--config={folder / 'server.properties'}",
    ]  # fmt: skip
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BrokerFailed(
            f"the folder of the Kafka broker cannot be prepared: {(result.stdout + result.stderr)[-1000:]}"
        )


def _readiness(port: int) -> Callable[[], bool]:
    """Return a function that tells whether the broker at a port answers, and has joined itself."""
    try:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient
    except ImportError:
        raise BrokerMissing("Kafka's client is missing: pip install 'fedstac[kafka]'") from None
    client = AdminClient(
        {
            "bootstrap.servers": f"127.0.0.1:{port}",
            "log_level": 0,
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 100,
        }
    )

    def is_ready() -> bool:
        try:
            return bool(client.list_topics(timeout=0.5).brokers)
        except KafkaException:
            return False

    return is_ready
