"""Packages by their ordinary clients, without root and without installing: apt-get, npm, pip.

Guarantees: a fetched archive is kept in the cache (`fetched/<client>/<request>/`, with its SHA-256) and not
fetched again until `refresh`; it appears whole or not at all; two processes never fetch the same one at
once; clients get a private folder for whatever they write. Every way to fail (no client, no network, no such
package, time over) is `SourceUnavailable`, with the client's own last line.

apt: the system's package lists are tried first; where they are missing or stale, lists of our own are updated
in the cache, which needs no root. pip builds a source archive's metadata, which runs that package's build
code: what installing it would do as well. npm's install scripts are never run.
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cupola.corpus.built import only_one
from cupola.corpus.sources import SourceUnavailable
from cupola.display import Display
from cupola.errors import InputError
from cupola.paths import cache_root
from cupola.storage import ASIDE, MANIFEST, new_folder, read_manifest, verify

FETCH_SECONDS = 600
LISTS_SECONDS = 300
LISTS_FRESH_SECONDS = 86_400

REQUESTS = {
    "apt": r"[a-z0-9][a-z0-9+.-]*(?::[a-z0-9]+)?(?:=[\w.+:~-]+)?",
    "npm": r"(?:@[\w.~-]+/)?[A-Za-z0-9_][\w.~-]*(?:@[\w.^~<>=-]+)?",
    "pypi": r"[A-Za-z0-9][\w.-]*(?:[=<>!~]=?[\w.*,<>=!~+-]+)?",
}


@dataclass(frozen=True)
class Package:
    """A fetched archive, kept in the cache."""

    client: str
    name: str
    version: str
    archive: Path
    sha256: str


def fetch(client: str, request: str, display: Display, refresh: bool = False, built: bool = True) -> Package:
    """The archive of a package, from the cache or by its client.

    Args:
        client: apt, npm or pypi.
        request: a name, with a version in the client's own way (`name=1`, `name@1`, `name==1`).
        built: for pypi, a wheel; otherwise the source archive.

    Raises:
        InputError: the request is not a package's name.
        SourceUnavailable: it cannot be had.
    """
    if not re.fullmatch(REQUESTS[client], request):
        raise InputError(f"{client}: {request!r} is not a package's name")
    key = re.sub(r"[^A-Za-z0-9._=+-]", "_", request) + ("" if built else "-source")
    if key != request:
        key += f"-{hashlib.sha256(request.encode()).hexdigest()[:8]}"
    folder = cache_root() / "fetched" / client / key
    with only_one(folder, f"{client} {request}", display):
        if refresh or not (folder / MANIFEST).exists():
            _fetch_into(folder, client, request, display, built)
        manifest = read_manifest(folder)
    archive = manifest["archive"]
    return Package(
        client, manifest["name"], manifest["version"], folder / archive, manifest["files"][archive]["sha256"]
    )


def check(package: Package) -> None:
    """Compare a kept archive with the SHA-256 of when it was fetched.

    Raises:
        CupolaError: it is damaged.
    """
    verify(package.archive.parent)


def _fetch_into(folder: Path, client: str, request: str, display: Display, built: bool) -> None:
    work = Path(tempfile.mkdtemp(prefix=f"{ASIDE}fetch-", dir=folder.parent))
    try:
        with display.task(f"fetching {client} {request}"):
            if client == "apt":
                _apt(request, work, display)
            elif client == "npm":
                _npm(request, work)
            else:
                _pip(request, work, built)
        archives = sorted(path for path in work.iterdir() if path.is_file())
        if len(archives) != 1:
            raise SourceUnavailable(
                f"{client} {request}: the client left {len(archives)} archives, one is expected"
            )
        name, version = name_and_version(client, request, archives[0].name)
        facts = {"client": client, "request": request, "name": name, "version": version}
        with new_folder(folder, {**facts, "archive": archives[0].name}) as aside:
            shutil.move(archives[0], aside / archives[0].name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def name_and_version(client: str, request: str, archive: str) -> tuple[str, str]:
    """From the archive's file name, which each client forms by rule."""
    if client == "apt":
        name, version, *_ = archive.removesuffix(".deb").split("_")
        return name, version.replace("%3a", ":")
    if client == "npm":
        name = re.sub(r"(?<=.)@[^/]*$", "", request)
        stem = archive.removesuffix(".tgz")
        return name, stem.removeprefix(f"{name.lstrip('@').replace('/', '-')}-")
    stem = re.sub(r"\.(whl|zip|tar\.(gz|bz2|xz))$", "", archive)
    if archive.endswith(".whl"):
        name, version, *_ = stem.split("-")
        return name, version
    name, _, version = stem.rpartition("-")
    return name, version


def _npm(request: str, work: Path) -> None:
    client = shutil.which("npm")
    if client is None:
        raise SourceUnavailable("there is no npm on this machine")
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=work.parent) as private:
        environment = {
            "npm_config_cache": private,
            "npm_config_update_notifier": "false",
            "npm_config_fetch_retries": "1",
            "npm_config_fetch_timeout": "30000",
        }
        command = [client, "pack", "--loglevel=error", "--ignore-scripts", request]
        _call(command, work, f"npm {request}", environment)


def _pip(request: str, work: Path, built: bool) -> None:
    kind = "--only-binary=:all:" if built else "--no-binary=:all:"
    options = [
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--retries=1",
        "--timeout=30",
        "--no-deps",
    ]
    command = [sys.executable, "-m", "pip", "download", *options, kind, "--dest", str(work), request]
    _call(command, work, f"pypi {request}")


def _apt(request: str, work: Path, display: Display) -> None:
    client = shutil.which("apt-get")
    if client is None:
        raise SourceUnavailable("there is no apt-get on this machine")
    download = [client, "-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30"]
    if os.geteuid() == 0:
        download += ["-o", "APT::Sandbox::User=root"]
    try:
        _call([*download, "download", request], work, f"apt {request}")
    except SourceUnavailable as first:
        for partial in work.iterdir():
            partial.unlink()
        display.say(f"apt {request}: not in the system's package lists; using lists in the cache")
        private = _private_lists(client, str(first), display)
        _call([*download, *private, "download", request], work, f"apt {request}")


def _private_lists(client: str, first: str, display: Display) -> list[str]:
    """apt options for package lists in the cache, updated at most once a day."""
    root = cache_root() / "fetched" / "apt-lists"
    for folder in ("lists/partial", "cache/archives/partial"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    installed = Path("/var/lib/dpkg/status")
    if not installed.exists():
        installed = root / "status"
        installed.touch()
    settings = {
        "Dir::State": root,
        "Dir::State::lists": root / "lists",
        "Dir::State::status": installed,
        "Dir::Cache": root / "cache",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    if os.geteuid() == 0:
        options += ["-o", "APT::Sandbox::User=root"]
    updated = root / "updated"
    with only_one(updated, "apt's package lists", display):
        if not updated.exists() or time.time() - updated.stat().st_mtime > LISTS_FRESH_SECONDS:
            with display.task("updating apt's package lists in the cache"):
                command = [client, "-qq", "-o", "Acquire::Retries=1", *options, "update"]
                try:
                    _call(command, root, "apt-get update", seconds=LISTS_SECONDS)
                except SourceUnavailable as error:
                    raise SourceUnavailable(f"{first}; {error}") from None
            updated.touch()
    return options


def _call(
    command: list[str],
    folder: Path,
    what: str,
    environment: dict[str, str] | None = None,
    seconds: float | None = None,
) -> None:
    seconds = seconds or FETCH_SECONDS
    try:
        # A group of its own, so that what the client has started ends with it.
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
        )
    except OSError as error:
        raise SourceUnavailable(f"{what}: {command[0]} cannot be started ({error.strerror})") from None
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise SourceUnavailable(f"{what}: no answer within {seconds:g} seconds") from None
        raise
    if process.returncode != 0:
        raise SourceUnavailable(f"{what}: {_telling_line(output)}")


def _telling_line(output: str) -> str:
    """The line of a client's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for sign, which in (
        (r"^E:", -1),
        (r"^npm (?:error|ERR!) (?:\d{3}|network) ", 0),
        (r"^ERROR:|[Ee]rror", -1),
    ):
        found = [line for line in lines if re.search(sign, line)]
        if found:
            return found[which][:300]
    return lines[-1][:300] if lines else "the client failed and said nothing"
