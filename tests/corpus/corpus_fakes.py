"""Gathered text, archives made of bytes, and package clients that need no network."""

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from cupola import storage
from cupola.corpus.documents import Document, DocumentWriter


def gathered(folder: Path, train: list[str], heldout: Sequence[str] = ()) -> Path:
    """A folder as `cupola.corpus.gather` makes it."""
    facts: dict[str, dict[str, int]] = {"documents": {}, "bytes": {}}
    with storage.new_folder(folder, facts) as aside:
        for split, texts in (("train", train), ("heldout", heldout)):
            with DocumentWriter(aside / f"{split}.parquet") as writer:
                for number, text in enumerate(texts):
                    writer.write(Document(text, str(number), "test", "none"))
            facts["documents"][split], facts["bytes"][split] = writer.documents, writer.bytes
    return folder


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def deb_bytes(files: dict[str, bytes], compression: str = "xz") -> bytes:
    """A Debian package: an `ar` archive of three members."""
    if compression == "zst":
        import zstandard

        data = zstandard.ZstdCompressor().compress(tar_bytes(files, "w"))
    else:
        data = tar_bytes(files, f"w:{compression}")
    out = b"!<arch>\n"
    members = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.gz", tar_bytes({"./control": b"Package: x\n"})),
        (f"data.tar.{compression}", data),
    ]
    for name, content in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return out


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class Registry:
    """A folder of archives, and clients that copy from it, note each call, and refuse what isn't there."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.archives, self.commands, self.log = root / "archives", root / "bin", root / "calls"
        self.archives.mkdir(parents=True)
        self.commands.mkdir()
        self.log.touch()
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("PATH", str(self.commands))
        monkeypatch.setenv("FAKE_ARCHIVES", str(self.archives))
        monkeypatch.setenv("FAKE_LOG", str(self.log))

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    def _command(self, name: str, body: str) -> None:
        path = self.commands / name
        path.write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "{name} $*" >> "$FAKE_LOG"\n' + body)
        path.chmod(0o755)

    def apt(self, known: dict[str, bytes], needs_update: bool = False) -> None:
        for name, data in known.items():
            (self.archives / f"{name}_1.0%3a2_all.deb").write_bytes(data)
        guard = 'case "$*" in *Dir::State=*) ;; *) echo "E: Unable to locate package" >&2; exit 100;; esac\n'
        body = 'for last; do :; done\nif [ "$last" = update ]; then exit 0; fi\n' + (
            guard if needs_update else ""
        )
        body += 'cp "$FAKE_ARCHIVES/$last"_*.deb . 2>/dev/null || '
        body += '{ echo "E: Unable to locate package $last" >&2; exit 100; }\n'
        self._command("apt-get", body)

    def npm(self, known: dict[str, bytes]) -> None:
        for name, data in known.items():
            (self.archives / f"{name.lstrip('@').replace('/', '-')}-3.1.0.tgz").write_bytes(data)
        body = 'for last; do :; done\nname=$(echo "$last" | sed "s/^@//; s#/#-#")\n'
        body += (
            'cp "$FAKE_ARCHIVES/$name"-*.tgz . 2>/dev/null || { echo "npm error code E404" >&2; exit 1; }\n'
        )
        self._command("npm", body)

    def pip(self, wheels: dict[str, bytes], sources: dict[str, bytes]) -> None:
        for name, data in wheels.items():
            (self.archives / f"{name}-2.0-py3-none-any.whl").write_bytes(data)
        for name, data in sources.items():
            (self.archives / f"{name}-2.0.tar.gz").write_bytes(data)
        package = self.archives.parent / "modules" / "pip"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(
            "import os, pathlib, shutil, sys\n"
            "open(os.environ['FAKE_LOG'], 'a').write('pip ' + ' '.join(sys.argv[1:]) + '\\n')\n"
            "end = '*.whl' if '--only-binary=:all:' in sys.argv else '.tar.gz'\n"
            "archives = pathlib.Path(os.environ['FAKE_ARCHIVES'])\n"
            "found = sorted(archives.glob(sys.argv[-1] + '-*' + end.lstrip('*')))\n"
            "if not found: sys.exit('ERROR: No matching distribution found for ' + sys.argv[-1])\n"
            "shutil.copy(found[0], sys.argv[sys.argv.index('--dest') + 1])\n"
        )
        path = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self.monkeypatch.setenv("PYTHONPATH", path)


def prose(subject: str, sentences: int = 12) -> str:
    """English of which every line differs, long enough to be kept."""
    return "\n".join(
        f"This is description {number} of {subject}, and says something about the {subject} in this book."
        for number in range(sentences)
    )


def page(subject: str) -> bytes:
    paragraphs = prose(subject).replace("\n", "</p>\n<p>")
    return f"<html><body><h1>{subject}</h1><p>{paragraphs}</p></body></html>".encode()


def compressed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)
