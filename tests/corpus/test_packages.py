"""Packages through clients that need no network: what is fetched, kept, chosen, refused; fallbacks."""

import io
import sys
import tarfile
from pathlib import Path

import pytest

from cupola.corpus import Gathered, documents, gather
from cupola.corpus.archives import UnsafeArchive, unpack
from cupola.corpus.gathering import text_root
from cupola.corpus.patterns import matches
from cupola.corpus.sources import clients
from cupola.corpus.sources.choosing import Choice
from cupola.errors import CupolaError, InputError
from cupola.recipe.corpora import Corpus
from tests.corpus.corpus_fakes import Registry, compressed, deb_bytes, page, prose, tar_bytes, zip_bytes
from tests.displays import Heard

COPYRIGHT = (
    b"Format: https://x\n\nFiles: *\nCopyright: Someone\nLicense: GPL-3+\n\nFiles: debian/*\nLicense: MIT\n"
)
DOC = "./usr/share/doc/book/"


def book() -> dict[str, bytes]:
    """A manual as packages ship it: two formats, two languages, notices, indexes, pictures, banners."""
    banner = b"<body><p>Get the printed book</p>"
    files = {
        f"{DOC}html/en-US/ch{n}.html": page(f"chapter {n}").replace(b"<body>", banner) for n in range(10)
    }
    files |= {f"{DOC}html/de-DE/ch{n}.html": page(f"Kapitel {n}") for n in range(10)}
    files |= {
        f"{DOC}html/en-US/ch0.txt": prose("chapter 0").encode(),
        f"{DOC}whole.txt.gz": compressed(
            "\n\n".join(prose(f"chapter {n}").replace("\n", " ") for n in range(10))
        ),
        f"{DOC}copyright": COPYRIGHT,
        f"{DOC}changelog.gz": compressed(prose("changes")),
        f"{DOC}html/en-US/genindex.html": page("index"),
        f"{DOC}html/en-US/cover.png": b"\x89PNG\x00",
        "./usr/share/man/man1/book.1.gz": compressed(".TH BOOK 1\n.SH NAME\nbook \\- " + prose("program")),
        f"{DOC}README.cn.txt": ("这是一本书。" * 100).encode(),
    }
    return files


def names(found: Gathered) -> set[str]:
    return {item.id for split in ("train", "heldout") for item in documents(found.path, split)}


@pytest.mark.parametrize("compression", ["xz", "gz", "zst"])
def test_a_debian_package_gives_its_english_text_once(
    cache: Path, registry: Registry, heard: Heard, compression: str
) -> None:
    registry.apt({"book": deb_bytes(book(), compression)})
    found = gather("manual", Corpus(apt="book"), heard)
    root = "apt:book/usr/share/doc/book/html/en-US"
    expected = {f"{root}/ch{n}.html" for n in range(10)} | {"apt:book/usr/share/man/man1/book.1.gz"}
    assert names(found) == expected
    items = list(documents(found.path, "train"))
    assert {(item.source, item.licence) for item in items} == {
        ("apt:book", "GPL-3+ (see usr/share/doc/book/copyright)")
    }
    assert not any("printed book" in item.text for item in items)
    assert found.facts["dropped"] == {"not English prose": 1, "same text in another format": 1}
    assert found.facts["skipped_files"] == {
        "in another language": 10,
        "notice, index or source of a generated page": 1,
        "same name in another format": 1,
        "unknown kind of file": 2,  # the picture, and the changelog, which has no ending
    }
    assert found.facts["versions"] == {"apt:book": "1.0:2"}
    assert found.facts["taken"] == {"source": "apt book", "fallback": False, "because": []}


def test_files_choose_exactly(cache: Path, registry: Registry, heard: Heard) -> None:
    registry.apt({"book": deb_bytes(book())})
    found = gather("manual", Corpus(apt="book", files="**/de-DE/*.html", exclude="**/ch[5-9].html"), heard)
    assert names(found) == {f"apt:book/usr/share/doc/book/html/de-DE/ch{n}.html" for n in range(5)}


def test_an_archive_is_kept_and_not_fetched_again(cache: Path, registry: Registry, heard: Heard) -> None:
    registry.apt({"book": deb_bytes(book())})
    gather("manual", Corpus(apt="book"), heard)
    calls = registry.calls()
    assert len(calls) == 1
    gather("manual", Corpus(apt="book"), heard)
    gather("manual", Corpus(apt="book", min_document_bytes=100), heard)
    assert registry.calls() == calls
    gather("manual", Corpus(apt="book"), heard, refresh=True)
    assert len(registry.calls()) == 2


def test_gathered_text_needs_no_client_and_no_archive(
    cache: Path, registry: Registry, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.apt({"book": deb_bytes(book())})
    first = gather("manual", Corpus(apt="book"), heard)
    monkeypatch.setenv("PATH", "/nowhere")
    archive = next((cache / "fetched" / "apt" / "book").glob("*.deb"))
    archive.unlink()
    assert gather("manual", Corpus(apt="book"), heard).path == first.path


def test_a_damaged_archive_is_refused(cache: Path, registry: Registry, heard: Heard) -> None:
    registry.apt({"book": deb_bytes(book())})
    gather("manual", Corpus(apt="book"), heard)
    archive = next((cache / "fetched" / "apt" / "book").glob("*.deb"))
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(CupolaError, match="is damaged"):
        gather("manual", Corpus(apt="book", min_document_bytes=100), heard)


def test_apt_updates_private_lists_where_the_system_has_none(
    cache: Path, registry: Registry, heard: Heard
) -> None:
    registry.apt({"book": deb_bytes(book()), "tool": deb_bytes(book())}, needs_update=True)
    gather("manual", Corpus(apt=["book", "tool"]), heard)
    updates = [call for call in registry.calls() if call.endswith(" update")]
    assert len(updates) == 1
    assert f"Dir::State::lists={cache / 'fetched' / 'apt-lists' / 'lists'}" in updates[0]


def test_alternatives_of_a_package(cache: Path, registry: Registry, heard: Heard) -> None:
    registry.apt({"manual-15": deb_bytes(book())})
    found = gather("manual", Corpus(apt="manual-16 | manual-15"), heard)
    assert found.facts["versions"] == {"apt:manual-15": "1.0:2"}


def test_npm(cache: Path, registry: Registry, heard: Heard) -> None:
    files = {
        "package/package.json": b'{"license": "CC0-1.0"}',
        "package/data/one.txt": prose("one").encode(),
        "package/data/two.json": b'{"intro": {"text": "'
        + prose("two").replace("\n", " ").encode()
        + b'"}, "n": 1}',
        "package/lib/index.js": b"code",
    }
    registry.npm({"@scope/speeches": tar_bytes(files)})
    found = gather("speeches", Corpus(npm="@scope/speeches", files="data/*.{txt,json}"), heard)
    items = {item.id: item for split in ("train", "heldout") for item in documents(found.path, split)}
    assert set(items) == {f"npm:@scope/speeches/data/{name}" for name in ("one.txt", "two.json")}
    assert items["npm:@scope/speeches/data/two.json"].text.startswith("intro: This is description 0")
    assert {item.licence for item in items.values()} == {"CC0-1.0 (npm @scope/speeches)"}
    assert found.facts["versions"] == {"npm:@scope/speeches": "3.1.0"}


def test_pypi_prefers_the_wheel_and_takes_the_source_where_the_wheel_holds_nothing(
    cache: Path, registry: Registry, heard: Heard
) -> None:
    metadata = b"Metadata-Version: 2.1\nName: manual\nLicense-Expression: BSD-3-Clause\n\nLong.\n"
    wheel = {
        "manual-2.0.dist-info/METADATA": metadata,
        "manual/a.py": b"x = 1",
        "manual/guide.md": prose("g").encode(),
    }
    source = {"manual-2.0/PKG-INFO": metadata, "manual-2.0/docs/intro.txt": prose("intro").encode()}
    registry.pip({"manual": zip_bytes(wheel)}, {"manual": tar_bytes(source)})
    found = gather("manual", Corpus(pypi="manual"), heard)
    assert names(found) == {"pypi:manual/manual/guide.md"}
    assert found.facts["licences"] == {"BSD-3-Clause (PyPI manual)": 1}
    found = gather("manual", Corpus(pypi="manual", files="docs/**/*.txt"), heard)
    assert names(found) == {"pypi:manual/docs/intro.txt"}
    assert found.facts["licences"] == {"BSD-3-Clause (PyPI manual)": 1}
    assert ["--no-binary=:all:" in call for call in registry.calls()] == [False, True]


def chain() -> Corpus:
    return Corpus(
        apt="book",
        fallback=Corpus(
            npm="book", fallback=Corpus(pypi="book", fallback=Corpus(python="code", max_bytes=50_000))
        ),
    )


@pytest.mark.parametrize("here", ["apt", "npm", "pypi", "python"])
def test_the_fallback_chain(cache: Path, registry: Registry, heard: Heard, here: str) -> None:
    if here != "python":
        files = {f"package/{name}.md": prose(name).encode() for name in ("a", "b")}
        if here == "apt":
            registry.apt({"book": deb_bytes(book())})
        elif here == "npm":
            registry.npm({"book": tar_bytes(files)})
    registry.pip({"book": zip_bytes({"book/a.md": prose("a").encode()})} if here == "pypi" else {}, {})
    before = ["apt", "npm", "pypi", "python"].index(here)
    found = gather("manual", chain(), heard)
    assert found.facts["taken"]["source"].startswith(here)
    assert found.facts["taken"]["fallback"] is (before > 0)
    assert len(found.facts["taken"]["because"]) == before
    assert sum("taking the fallback" in line for line in heard.warnings) == before
    again = gather("manual", chain(), heard)
    assert again.path == found.path
    assert again.facts["taken"] == found.facts["taken"]


def test_the_reasons_are_told(cache: Path, registry: Registry, heard: Heard) -> None:
    registry.npm({})
    registry.pip({}, {})
    with pytest.raises(InputError) as error:
        gather("manual", Corpus(apt="book", fallback=Corpus(npm="book", fallback=Corpus(pypi="book"))), heard)
    line = str(error.value)
    assert "corpora.manual: cannot be had" in line
    assert "E404" in line
    assert "No matching distribution found for book" in line
    assert "\n" not in line


def test_a_fallback_is_kept_until_refresh(cache: Path, registry: Registry, heard: Heard) -> None:
    corpus = Corpus(apt="book", fallback=Corpus(npm="other"))
    registry.npm(
        {"other": tar_bytes({"package/a.md": prose("a").encode(), "package/b.md": prose("b").encode()})}
    )
    registry.apt({})
    first = gather("manual", corpus, heard)
    registry.apt({"book": deb_bytes(book())})
    calls = registry.calls()
    assert gather("manual", corpus, heard).path == first.path
    assert registry.calls() == calls
    assert any("--refresh" in line for line in heard.warnings)
    assert gather("manual", corpus, heard, refresh=True).facts["taken"]["fallback"] is False


@pytest.mark.parametrize("client", ["apt", "npm", "pypi"])
@pytest.mark.parametrize("request_", ["-o=x", "../x", "a b", "git+https://x", "./x", "", "x; rm"])
def test_only_package_names_are_asked_for(cache: Path, heard: Heard, client: str, request_: str) -> None:
    with pytest.raises(InputError, match="is not a package's name"):
        clients.fetch(client, request_, heard)


def test_a_client_that_hangs_is_given_up(
    cache: Path, registry: Registry, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry._command("npm", "sleep 30\n")
    monkeypatch.setattr(clients, "FETCH_SECONDS", 0.2)
    with pytest.raises(InputError, match="no answer within"):
        gather("manual", Corpus(npm="book"), heard)
    assert not list((cache / "fetched" / "npm").glob("*/manifest.json"))


def unsafe_tar(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, 0, "/etc/passwd"
        archive.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.tgz", tar_bytes({"package/../../out.txt": b"x"})),
        ("b.tgz", unsafe_tar("/tmp/out.txt")),
        ("c.whl", zip_bytes({"../out.txt": b"x"})),
        ("d.whl", zip_bytes({"a\\..\\..\\out.txt": b"x"})),
        ("e.deb", deb_bytes({"./usr/../../out.txt": b"x"})),
    ],
)
def test_archives_that_lead_outside_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnsafeArchive, match="outside of its folder"):
        unpack(tmp_path / name, tmp_path / "in" / "deep", lambda name: True)
    assert not list(tmp_path.rglob("out.txt"))


def test_links_and_unwanted_members_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(unsafe_tar("package/link", tarfile.SYMTYPE))
    assert unpack(tmp_path / "a.tgz", tmp_path / "a", lambda name: True) == []
    (tmp_path / "b.tgz").write_bytes(tar_bytes({"p/a.txt": b"a", "p/b.png": b"b"}))
    assert unpack(tmp_path / "b.tgz", tmp_path / "b", lambda name: name.endswith(".txt")) == ["p/a.txt"]
    assert [path.name for path in (tmp_path / "b").rglob("*.*")] == ["a.txt"]


@pytest.mark.parametrize(("name", "data"), [("a.tgz", b"no"), ("b.deb", b"no"), ("c.whl", b"PK\x03\x04no")])
def test_broken_archives_are_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CupolaError, match=name):
        unpack(tmp_path / name, tmp_path / "x", lambda name: True)


def test_an_unsafe_package_stops_the_run(cache: Path, registry: Registry, heard: Heard) -> None:
    registry.npm({"evil": tar_bytes({"package/../../x.md": prose("x").encode()})})
    with pytest.raises(UnsafeArchive):
        gather("evil", Corpus(npm="evil", fallback=Corpus(python="code", max_bytes=50_000)), heard)
    assert not list(text_root().glob("*/manifest.json"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("html/en-US/ch1.html", True),
        ("doc/copyright", False),
        ("doc/changelog.Debian.gz", False),
        ("html/bookindex.html", False),
        ("html/index.html", False),
        ("html/_sources/ch1.rst.txt", False),
        ("man/man1/history.1.gz", True),
        ("README.md", True),
        ("LICENSE.txt", False),
        ("x.dist-info/AUTHORS.md", False),
    ],
)
def test_what_is_prose(name: str, wanted: bool) -> None:
    assert (Choice([], []).skip_reason(name) is None) is wanted


@pytest.mark.parametrize(
    ("path", "pattern", "matched"),
    [
        ("a/b.txt", "*.txt", True),
        ("a/b.txt", "a/*.txt", True),
        ("a/b/c.txt", "a/*.txt", False),
        ("a/b/c.txt", "a/**/*.txt", True),
        ("a/c.txt", "a/**/*.txt", True),
        ("a/c.txt", "**/a/**", True),
        ("b.txt", "[!a].txt", True),
        ("a.txt", "[!a].txt", False),
        ("a.md", "*.{md,txt}", True),
        ("a.mdx", "*.{md,txt}", False),
        ("a.txt", "?.txt", True),
        ("a+b.txt", "a+b.txt", True),
    ],
)
def test_patterns(path: str, pattern: str, matched: bool) -> None:
    assert matches(path, pattern) is matched


def test_python_carries_megabytes_of_real_text(cache: Path, heard: Heard) -> None:
    found = gather("python", Corpus(python=["documentation", "code"], max_bytes=2_000_000), heard)
    assert sum(found.facts["bytes"].values()) >= 2_000_000
    items = {item.id for item in documents(found.path, "train")}
    assert any(name.startswith("python:documentation/") for name in items)
    assert found.facts["versions"]["python"] == sys.version.split()[0]
