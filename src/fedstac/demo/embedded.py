"""A private PostgreSQL with PostGIS for `fedstac demo` and the tests. It ends with the process that started it.

A folder holds `pgdata`, `postgres.log` and `password` (of the superuser `postgres`, for TCP). Sockets live in a short
folder of their own, since their paths are limited to 107 bytes. Linux only: prctl(2), flock(2) and /proc are used.

Who is alive is told by flock: the server inherits a lock on the data folder and one on the socket folder, so both
are held exactly as long as any of its processes runs, whatever kill -9 left in pid files.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from fedstac.settings import data_folder

PORT_TRIES = 3
STARTING = 600.0  # seconds; crash recovery after a long run takes its time
LEAVING = 30.0  # seconds that a server which is already stopping is waited for
GRACE = 1.0  # seconds in which the server of a parent that was just killed may notice it
SOCKET_PREFIX = "fedstac-pg-"
SOCKET_PATH_LIMIT = 107
EXTENSIONS = ("postgis", "btree_gist")  # what pgstac cannot be installed without

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "default_toast_compression": "lz4",
        "fsync": "on",
        "jit": "off",
        "log_line_prefix": "%m [%p] %u@%d ",
        "log_min_error_statement": "panic",  # a search that is cancelled may have 2 MB
        "log_parameter_max_length_on_error": "0",
        "log_timezone": "UTC",
        "max_connections": "200",
        "shared_buffers": "256MB",
        "synchronous_commit": "on",
        "timezone": "UTC",
    }
)

# Runs before a server in its process, as a program: preexec_fn is unsafe (and a warning) in a process with threads.
# The kernel forgets the death signal when the user changes, so it is set after; getppid tells of a parent that died
# before that.
LAUNCH = """
import ctypes, os, sys
parent, uid, gid = map(int, sys.argv[1:4])
if os.geteuid() != uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
PR_SET_PDEATHSIG, SIGINT = 1, 2
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGINT):
    sys.exit("prctl: " + os.strerror(ctypes.get_errno()))
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(sys.argv[4], sys.argv[4:])
"""


class ClusterError(Exception):
    """The private PostgreSQL cannot be had. Never raised itself."""


class MissingPostgres(ClusterError):
    """No PostgreSQL with PostGIS is installed; the message is the one line to run."""


class UnusableFolder(ClusterError):
    """The folder is out of reach, or holds what fedstac did not put there."""


class FolderInUse(ClusterError):
    """A server runs on the folder."""


class WrongMajorVersion(ClusterError):
    """The data was written by a major version of PostgreSQL that is not installed."""


class StartFailed(ClusterError):
    """initdb or the server ended, or did not become ready; the message ends with the last lines of its log."""


@dataclass(slots=True)
class Cluster:
    """A running server. `port` names its socket, and is open on 127.0.0.1 to those who have a password."""

    data: Path
    socket_dir: Path
    port: int
    superuser_password: str = field(repr=False)
    pid: int
    _start_again: Callable[[], int] | None = field(default=None, repr=False)

    def restart(self) -> None:
        """Start a server that has ended, or was killed, again: same data, socket and port, so that clients reconnect.

        From the main thread, as `cluster` itself.
        """
        if self._start_again is None:
            raise RuntimeError("only a cluster that `cluster` started can be started again")
        self.pid = self._start_again()

    def dsn(self, database: str = "postgres", *, user: str = "postgres", password: str | None = None) -> str:
        """Return the URL through the socket, for asyncpg and psycopg.

        Who can enter the socket folder needs no password.
        """
        secret = f":{quote(password, safe='')}" if password is not None else ""
        place = f"host={quote(str(self.socket_dir), safe='')}&port={self.port}"
        return f"postgresql://{quote(user, safe='')}{secret}@/{quote(database, safe='')}?{place}"


@dataclass(frozen=True, slots=True)
class _Account:
    """Who PostgreSQL runs as; it refuses to be root."""

    name: str
    uid: int
    gid: int


def _silent(_line: str) -> None:
    pass


def default_folder() -> Path:
    """Return where the data of `fedstac demo` is kept: a place that the account which PostgreSQL runs as can enter."""
    if os.geteuid() != 0:
        return data_folder()
    if os.access("/var/lib", os.W_OK):
        return Path("/var/lib/fedstac")
    return Path(f"/var/tmp/fedstac-{os.geteuid()}")  # noqa: S108 - sticky, kept over a restart


def find_binaries() -> Path:
    """Return the folder of initdb and postgres of the newest version that has PostGIS, else MissingPostgres."""
    installed = _installations()
    if not installed:
        raise MissingPostgres(_install_line())
    return installed[max(installed)]


@contextmanager
def cluster(
    data: Path | None = None,
    *,
    settings: Mapping[str, str] = MappingProxyType({}),
    progress: Callable[[str], None] = _silent,
) -> Iterator[Cluster]:
    """Yield a server on the folder, which is made if there is none. Stopped at the end, and when this process is
    killed.

    To be called from the main thread: the kernel's death signal is sent when the *thread* that forked ends.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start the cluster from the main thread: it would end together with any other")
    folder = (data or default_folder()).absolute()
    account = _account_for(folder)
    _make_folder(folder, account)
    sockets, sockets_lock = _make_socket_folder(account)
    try:
        try:
            with _lock_on(folder, progress) as folder_lock:
                _remove_left_sockets(account)
                locks = (folder_lock, sockets_lock)
                binaries = _prepare(folder, account, locks, progress)
                server, port = _start(binaries, folder, account, sockets, locks, settings, progress)
        finally:
            os.close(sockets_lock)  # the server has its own copy; a child that this process forks shall have none

        def start_again() -> int:
            nonlocal server
            server.wait(LEAVING)
            with _lock_on(folder, progress, LEAVING) as folder_lock:
                lock = _lock_socket_folder(sockets, account)
                try:
                    locks = (folder_lock, lock)
                    server, _ = _start(binaries, folder, account, sockets, locks, settings, progress, port)
                finally:
                    os.close(lock)
            return server.pid

        try:
            yield Cluster(folder, sockets, port, _read(folder / "password").strip(), server.pid, start_again)
        finally:
            _stop(server)
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


# --- what is installed


def _installations() -> dict[int, Path]:
    """Return the folders of binaries by major version, of those with all EXTENSIONS."""
    folders: dict[int, Path] = {}
    on_path = shutil.which("pg_config")
    places = [Path(_output(on_path, "--bindir"))] if on_path else []
    for bindir in [*places, *Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]:
        if not all((bindir / program).exists() for program in ("initdb", "postgres", "pg_config")):
            continue
        extensions = Path(_output(bindir / "pg_config", "--sharedir")) / "extension"
        if all((extensions / f"{name}.control").exists() for name in EXTENSIONS):
            version = re.search(r"\d+", _output(bindir / "pg_config", "--version"))
            if version:
                folders.setdefault(int(version.group()), bindir)
    return folders


def _output(program: str | Path, argument: str) -> str:
    return subprocess.run([program, argument], capture_output=True, text=True, check=False).stdout.strip()


def _install_line() -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    if shutil.which("dnf"):
        return f"{sudo}dnf install -y postgresql-server postgresql-contrib postgis"
    return f"{sudo}apt-get install -y --no-install-recommends postgresql-postgis"


# --- the folder


def _account_for(folder: Path) -> _Account:
    """Return this user; for root the owner of the data, else `postgres`, else `nobody`."""
    if os.geteuid() != 0:
        return _Account(_user_name(os.geteuid()), os.geteuid(), os.getegid())
    with suppress(FileNotFoundError, NotADirectoryError):
        owner = (folder / "pgdata").stat()
        if owner.st_uid != 0:
            return _Account(_user_name(owner.st_uid), owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(name, entry.pw_uid, entry.pw_gid)
    raise ClusterError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody`: add one")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _make_folder(folder: Path, account: _Account) -> None:
    """Refuse before anything is written what the account cannot enter or somebody else uses; make what is missing."""
    for parent in reversed(folder.parents):
        if not os.path.lexists(parent):
            break
        if not _may_enter(parent, account):
            raise UnusableFolder(
                f"{folder}: the user {account.name}, as which PostgreSQL runs, cannot enter {parent}. Choose a folder"
                f" outside it, for example below /var/lib, or let users pass through it: chmod o+x {parent}"
            )
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        entries = {path.name for path in folder.iterdir()}
        if entries and not entries & {"pgdata", "password"}:
            raise UnusableFolder(f"{folder} holds other things and no data of fedstac: choose an empty folder")
        if not _may_enter(folder, account):
            folder.chmod(folder.stat().st_mode | 0o011)  # it stays ours; pgdata inside is the account's
        if not os.access(folder, os.W_OK):
            owner = _user_name(folder.stat().st_uid)
            raise UnusableFolder(f"{folder} belongs to {owner}: run as {owner} or root, or choose another folder")
    except OSError as error:
        raise UnusableFolder(f"{folder} cannot be used: {error.strerror}. Choose another folder") from error


def _may_enter(path: Path, account: _Account) -> bool:
    if account.uid == os.geteuid():
        return os.access(path, os.X_OK)
    # asks the kernel as that user, since mode bits do not show access control lists
    answer = subprocess.run(
        ["test", "-x", path], user=account.uid, group=account.gid, extra_groups=[], cwd="/", check=False
    )
    return answer.returncode == 0


@contextmanager
def _lock_on(folder: Path, progress: Callable[[str], None], grace: float = GRACE) -> Iterator[int]:
    """Yield a lock on the folder, which the server inherits; FolderInUse while another has it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        since, has_notice = time.monotonic(), False
        while not _try_lock(lock):
            pid, status = _pid_file(folder)
            if time.monotonic() - since > (LEAVING if status == "stopping" else grace):
                raise FolderInUse(_in_use(folder, pid))
            if status == "stopping" and not has_notice:
                progress(f"Waiting for PostgreSQL {pid} to stop")
                has_notice = True
            time.sleep(0.02)
        pid, _ = _pid_file(folder)
        if pid is not None:
            if _works_in(pid, folder / "pgdata"):  # started by hand, without our lock
                raise FolderInUse(_in_use(folder, pid))
            progress("The last run was killed: its committed data is recovered")
            (folder / "pgdata" / "postmaster.pid").unlink()  # else any server with this pid would pass for the old one
        yield lock
    finally:
        os.close(lock)


def _in_use(folder: Path, pid: int | None) -> str:
    if pid is None:
        return f"{folder} is being set up by another process: wait for it, or choose another folder"
    return f"PostgreSQL {pid} runs on {folder}: stop it with `kill -INT {pid}`, or choose another folder"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid_file(folder: Path) -> tuple[int | None, str]:
    """Return the server's pid and status: starting, ready, stopping, or "" while it is not yet known."""
    lines = _read(folder / "pgdata" / "postmaster.pid").splitlines()
    if not lines or not lines[0].isdigit():
        return None, ""
    return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""


def _works_in(pid: int, pgdata: Path) -> bool:
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", pgdata)
    except OSError:
        return False


# --- the data


def _prepare(folder: Path, account: _Account, locks: Sequence[int], progress: Callable[[str], None]) -> Path:
    """Return the binaries that fit the folder's data, which is made if there is none."""
    written_by = _read(folder / "pgdata" / "PG_VERSION").strip()
    if not written_by:
        binaries = find_binaries()
        progress(f"Making a PostgreSQL cluster in {folder}")
        _make_data(binaries, folder, account, locks)
        return binaries
    installed = _installations()
    if not installed:
        raise MissingPostgres(_install_line())
    if int(written_by) not in installed:
        there = ", ".join(str(major) for major in sorted(installed))
        raise WrongMajorVersion(
            f"The data in {folder} was written by PostgreSQL {written_by}; installed with PostGIS: {there}."
            f" Install PostgreSQL {written_by} with PostGIS, or choose an empty folder"
        )
    if not _read(folder / "password").strip():
        raise UnusableFolder(f"{folder / 'password'} is missing: restore it, or choose an empty folder")
    return installed[int(written_by)]


def _make_data(binaries: Path, folder: Path, account: _Account, locks: Sequence[int]) -> None:
    """Run initdb beside `pgdata` and rename, so that a killed run leaves no half of a cluster."""
    password, fresh = folder / "password", folder / "pgdata.new"
    password.unlink(missing_ok=True)
    with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(24) + "\n")
        os.fchown(file.fileno(), account.uid, account.gid)  # initdb reads it
    # C.UTF-8 knows upper and lower case beyond ASCII; musl and old systems have C only
    for ctype in ("C.UTF-8", "C"):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        os.chown(fresh, account.uid, account.gid)
        command = [str(binaries / "initdb"), f"--pgdata={fresh}", "--username=postgres", f"--pwfile={password}"]
        command += ["--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--no-locale"]
        command += [f"--lc-ctype={ctype}", "--no-sync", "--no-instructions"]
        with _spawn(command, account, locks, subprocess.PIPE) as initdb:
            output = initdb.communicate()[0].decode(errors="replace")
        if initdb.returncode == 0:
            fresh.rename(folder / "pgdata")
            return
        if "invalid locale" not in output:
            break
    raise StartFailed(f"initdb failed in {folder}:\n{_last_lines(output)}")


# --- the sockets


def _make_socket_folder(account: _Account) -> tuple[Path, int]:
    """Return a new folder and a lock on it."""
    base = _socket_base(account)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX, dir=base))
        with suppress(FileNotFoundError):  # another run may take it for left behind until it is locked
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            if _try_lock(lock) and folder.exists():
                os.fchown(lock, account.uid, account.gid)
                return folder, lock
            os.close(lock)


def _lock_socket_folder(folder: Path, account: _Account) -> int:
    """Return a lock on the folder of a server that is gone."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            if _try_lock(lock) and folder.exists():
                os.fchown(lock, account.uid, account.gid)
                return lock
            os.close(lock)
        time.sleep(0.01)


def _socket_base(account: _Account) -> Path:
    temporary = Path(tempfile.gettempdir())
    longest = temporary / f"{SOCKET_PREFIX}12345678" / ".s.PGSQL.65535"
    fits = len(os.fsencode(longest)) <= SOCKET_PATH_LIMIT
    reachable = all(_may_enter(path, account) for path in (temporary, *temporary.parents))
    return temporary if fits and reachable else Path("/tmp")  # noqa: S108 - mkdtemp follows


def _remove_left_sockets(account: _Account) -> None:
    """Remove the folders of killed runs: those on which no server holds its lock."""
    for folder in _socket_base(account).glob(f"{SOCKET_PREFIX}*"):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid in (account.uid, os.geteuid()) and _try_lock(lock):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


# --- the server


def _start(
    binaries: Path,
    folder: Path,
    account: _Account,
    sockets: Path,
    locks: Sequence[int],
    settings: Mapping[str, str],
    progress: Callable[[str], None],
    same_port: int | None = None,
) -> tuple[subprocess.Popen[bytes], int]:
    """Return a server that accepts connections, and its port; StartFailed otherwise, with nothing left running."""
    for tries_left in reversed(range(PORT_TRIES)):
        port = same_port or _free_port()
        ours = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": f'"{sockets}"'}
        command = [str(binaries / "postgres"), "-D", str(folder / "pgdata")]
        for name, value in {**SETTINGS, **settings, **ours}.items():
            command += ["-c", f"{name}={value}"]
        progress(f"Starting PostgreSQL on port {port}")
        log, start_of_log = _open_log(folder)
        try:
            server = _spawn(command, account, locks, log)
        finally:
            os.close(log)
        try:
            ready = _wait_until_ready(server, folder, progress)
        except BaseException:
            _stop(server)
            raise
        if ready:
            return server, port
        _stop(server)
        output = _read(folder / "postgres.log", start_of_log)
        if (
            not tries_left or "could not bind" not in output
        ):  # somebody may take the port between our look and its start
            break
    raise StartFailed(
        f"PostgreSQL did not start on {folder}. The end of {folder / 'postgres.log'}:\n{_last_lines(output)}"
    )


def _wait_until_ready(server: subprocess.Popen[bytes], folder: Path, progress: Callable[[str], None]) -> bool:
    since = last_notice = time.monotonic()
    while server.poll() is None and time.monotonic() - since < STARTING:
        if _pid_file(folder) == (server.pid, "ready"):
            return True
        if time.monotonic() - last_notice > 5:
            last_notice = time.monotonic()
            progress(f"PostgreSQL is recovering since {last_notice - since:.0f} s")
        time.sleep(0.01)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask for a fast shutdown, then for an immediate one (the next start recovers), then kill."""
    for how, patience in ((signal.SIGINT, 60), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
        server.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            server.wait(patience)
            return


def _spawn(command: Sequence[str], account: _Account, locks: Sequence[int], output: int) -> subprocess.Popen[bytes]:
    """Run as the account, out of reach of the terminal's Ctrl-C, with the locks, and only as long as this process."""
    launch = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), str(account.uid), str(account.gid)]
    return subprocess.Popen(
        [*launch, *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},  # no PG* variable of the caller
        pass_fds=locks,
        process_group=0,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _open_log(folder: Path) -> tuple[int, int]:
    """Return the log for appending, and where the lines of this start will begin.

    The last 10 MB and more are kept once.
    """
    path = folder / "postgres.log"
    with suppress(FileNotFoundError):
        if path.stat().st_size > 10_000_000:
            path.rename(folder / "postgres.log.1")
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    return log, os.fstat(log).st_size


def _read(path: Path, start: int = 0) -> str:
    """Return the text from a byte on; "" if there is no such file."""
    try:
        return path.read_bytes()[start:].decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-15:])
