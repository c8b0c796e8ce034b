"""Package archives: .deb, .tgz / .tar.gz and .whl / .zip, read with the standard library alone.

Guarantees: only ordinary files are written, only below the folder given; an archive with a member that would
land elsewhere (`../x`, `/x`) is refused where that member comes. Links, devices and the archive's permissions
are left out. Only wanted members are written, so the pictures of a manual cost no disk; one pass.
"""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

import zstandard

from cupola.errors import CupolaError

DEB_MAGIC = b"!<arch>\n"
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    EOFError,
    ValueError,
)


class UnsafeArchive(CupolaError):
    """An archive that would write outside of its folder."""


@contextmanager
def _deb_data(path: Path) -> Iterator[tarfile.TarFile]:
    """The data archive inside a .deb (an `ar` archive of debian-binary, control.tar.*, data.tar.*)."""
    with path.open("rb") as file:
        if file.read(8) != DEB_MAGIC:
            raise CupolaError(f"{path}: is not a Debian package")
        while header := file.read(60):
            name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                if name.endswith(".zst"):
                    stream = zstandard.ZstdDecompressor().stream_reader(file, closefd=False)
                    with stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                        yield archive
                else:
                    with tarfile.open(fileobj=cast(IO[bytes], _Window(file, size)), mode="r|*") as archive:
                        yield archive
                return
            file.seek(size + size % 2, 1)
    raise CupolaError(f"{path}: holds no data.tar")


class _Window:
    """The next `size` bytes of a file, for a reader that only reads on."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.left = file, size

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        return data


def zip_names(path: Path) -> list[str]:
    """The files in a .whl or .zip.

    Raises:
        CupolaError: it is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, OSError) as error:
        raise CupolaError(f"{path}: is damaged ({error}); delete it and gather again") from error


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    if path.suffix == ".deb":
        with _deb_data(path) as archive:
            yield archive
    else:
        with tarfile.open(path, mode="r|*") as archive:
            yield archive


def unpack(path: Path, folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Write the wanted members below `folder`; returns their names, sorted.

    Raises:
        UnsafeArchive: a member's name leads outside; it was not written.
        CupolaError: the archive is damaged or not of a known kind.
    """
    try:
        if zipfile.is_zipfile(path):
            return sorted(_unpack_zip(path, folder, wanted))
        return sorted(_unpack_tar(path, folder, wanted))
    except DAMAGED as error:
        raise CupolaError(f"{path}: is damaged ({error}); delete it and gather again") from error


def _unpack_tar(path: Path, folder: Path, wanted: Callable[[str], bool]) -> Iterator[str]:
    with _tar(path) as archive:
        for member in archive:
            name = _inside(member.name, path)
            if member.isfile() and wanted(name):
                source = archive.extractfile(member)
                assert source is not None, "an ordinary member has contents"
                _write(source, folder / name)
                yield name


def _unpack_zip(path: Path, folder: Path, wanted: Callable[[str], bool]) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = _inside(member.filename, path)
            if not member.is_dir() and wanted(name):
                with archive.open(member) as source:
                    _write(source, folder / name)
                yield name


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _inside(name: str, archive: Path) -> str:
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or (pure.parts and ":" in pure.parts[0]):
        raise UnsafeArchive(f"{archive}: refused, its member {name!r} would be written outside of its folder")
    return pure.as_posix()
