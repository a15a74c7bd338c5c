"""Data sets fetched from a server on this machine, which may be slow, changed or hostile."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import stat
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from range_server import Served, serve
from terralign.cli import main
from terralign.datasets import download as downloading
from terralign.datasets import facts as catalog
from terralign.datasets.facts import DatasetFacts, RemoteFile, read_facts
from terralign.datasets.fetch import fetch, plan, plan_fetch
from terralign.errors import DataError, StorageError
from terralign.scenes import web

PIXELS = bytes(range(256)) * 1000


def zipped(members: dict[str, bytes], **options: Any) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


def tarred(members: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return written.getvalue()


TILES = {"Tiles/Forest/a.jpg": PIXELS, "Tiles/River/b.jpg": b"b", "__MACOSX/Tiles/._a": b"x"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(downloading, "_WAIT_S", 0)
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as served:
        yield served


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def entry(server: Served, content: bytes, name: str = "Tiles.zip", **changes: Any) -> DatasetFacts:
    """A data set of one file that the server has."""
    server.answers[f"/{name}"] = content
    unpacks = "Tiles" if name.endswith((".zip", ".gz")) else None
    values = {
        "url": f"{server.url}/{name}",
        "num_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "folder": "tiles",
        "unpacks": unpacks,
    }
    file = RemoteFile.model_validate(values | changes)
    return DatasetFacts(
        description="tiles", sensors=("rgb",), labels="none", splits={"all": 2}, files=(file,)
    )


def left_in(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden files too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


WHOLE = {"Tiles/Forest/a.jpg": PIXELS, "Tiles/River/b.jpg": b"b"}


@pytest.mark.parametrize(
    ("name", "content"), [("Tiles.zip", zipped(TILES)), ("Tiles.tar.gz", tarred(TILES))]
)
def test_an_archive_is_unpacked_once_and_then_left_alone(
    server: Served, root: Path, name: str, content: bytes
) -> None:
    facts = entry(server, content, name)
    fetch(plan(facts, root))
    assert left_in(root / "tiles") == WHOLE
    planned = plan(facts, root)
    assert [one.done for one in planned] == [True]
    fetch(planned)
    assert len(server.asked) == 1


def test_a_cut_connection_is_resumed_where_it_broke(server: Served, root: Path) -> None:
    content = zipped({"Tiles/a": os.urandom(50_000)})
    server.cuts = [20_000, 20_000]
    fetch(plan(entry(server, content), root))
    assert [wanted for _, wanted in server.asked] == ["", "bytes=20000-", "bytes=40000-"]
    assert (root / "tiles/Tiles/a").stat().st_size == 50_000


def test_a_later_run_resumes_what_an_earlier_one_left(server: Served, root: Path) -> None:
    content = zipped({"Tiles/a": os.urandom(50_000)})
    facts = entry(server, content)
    server.cuts = [20_000, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"broke off after 20 kB .*; run the same command again"):
        fetch(plan(facts, root))
    assert list(left_in(root)) == ["tiles/.Tiles.zip.part"]
    server.cuts, server.asked = [], []
    fetch(plan(facts, root))
    assert server.asked == [("/Tiles.zip", "bytes=20000-")]
    assert list(left_in(root)) == ["tiles/Tiles/a"]


def test_a_server_that_ignores_ranges_begins_anew(server: Served, root: Path) -> None:
    content = zipped({"Tiles/a": os.urandom(50_000)})
    server.cuts, server.knows_ranges = [20_000], False
    fetch(plan(entry(server, content), root))
    assert [wanted for _, wanted in server.asked] == ["", "bytes=20000-"]
    assert list(left_in(root)) == ["tiles/Tiles/a"]


def test_another_file_than_the_published_one_is_discarded(server: Served, root: Path) -> None:
    facts = entry(server, zipped(TILES), md5="0" * 32, sha256=None)
    with pytest.raises(DataError, match=rf"its MD5 is [0-9a-f]{{32}}, expected {'0' * 32}; it was"):
        fetch(plan(facts, root))
    assert left_in(root) == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_bytes": 10}, r"has [\d,]+ bytes, expected 10: the publisher has changed"),
        ({"num_bytes": 10**15}, "needs .* MB but its disk has"),
        ({"url": "/gone.zip"}, r"gone.zip: it answers 404 .*; if the file has moved"),
        ({"url": "/ftp.zip"}, "redirects to 'ftp://a.org/x'; expected an address of http or"),
        ({"url": "/file.zip"}, "Redirection to url 'file:///etc/passwd' is not allowed"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_line(
    server: Served, root: Path, changes: dict[str, Any], told: str
) -> None:
    server.redirects = {"/ftp.zip": "ftp://a.org/x", "/file.zip": "file:///etc/passwd"}
    if "url" in changes:
        changes = {"url": server.url + changes["url"]}
    with pytest.raises((DataError, StorageError), match=told) as fault:
        fetch(plan(entry(server, zipped(TILES), **changes), root))
    assert "\n" not in str(fault.value)
    assert left_in(root) == {}


def test_https_is_not_given_up_for_http() -> None:
    request = urllib.request.Request("https://a.org/x")
    with pytest.raises(DataError, match="expected an address of https"):
        web._OnlyHttp().redirect_request(request, None, 302, "", {}, "http://a.org/x")


def test_a_list_without_a_published_size_is_bounded(
    server: Served, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = entry(server, b"a.jpg\n" * 1000, "train.txt", num_bytes=None)
    monkeypatch.setenv("TERRALIGN_LIMITS", "text_bytes=1KiB")
    with pytest.raises(DataError, match="sends more than 1,024 bytes"):
        fetch(plan(facts, root))
    monkeypatch.delenv("TERRALIGN_LIMITS")
    fetch(plan(facts, root))
    assert (root / "tiles/train.txt").read_bytes() == b"a.jpg\n" * 1000


def test_a_list_that_was_whole_when_a_run_was_killed_is_fetched_anew(
    server: Served, root: Path
) -> None:
    facts = entry(server, b"a.jpg\n", "train.txt", num_bytes=None)
    (root / "tiles").mkdir(parents=True)
    (root / "tiles/.train.txt.part").write_bytes(b"a.jpg\n")
    fetch(plan(facts, root))
    assert left_in(root) == {"tiles/train.txt": b"a.jpg\n"}


def test_what_is_there_is_kept(
    server: Served, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = entry(server, b"a.jpg\n", "train.txt")
    (root / "tiles").mkdir(parents=True)
    (root / "tiles/train.txt").write_bytes(b"mine")
    fetch(plan(facts, root))
    assert (root / "tiles/train.txt").read_bytes() == b"mine"
    assert "is kept, but is not the published file" in caplog.text
    older = entry(server, zipped(TILES), instead=("2750",))
    (root / "tiles/2750").mkdir()
    assert [one.place.name for one in plan(older, root)] == ["2750"]
    fetch(plan(older, root))
    assert server.asked == []


def test_an_archive_that_was_fetched_by_hand_is_checked_unpacked_and_kept(
    server: Served, root: Path
) -> None:
    facts = entry(server, zipped(TILES))
    (root / "tiles").mkdir(parents=True)
    (root / "tiles/Tiles.zip").write_bytes(b"half")
    with pytest.raises(DataError, match=r"Tiles.zip is not the published archive: its SHA-256"):
        fetch(plan(facts, root))
    (root / "tiles/Tiles.zip").write_bytes(zipped(TILES))
    fetch(plan(facts, root))
    assert left_in(root / "tiles") == {**WHOLE, "Tiles.zip": zipped(TILES)}
    assert server.asked == []


def test_a_link_in_the_place_of_a_part_is_not_followed(server: Served, root: Path) -> None:
    facts = entry(server, zipped(TILES))
    (root / "tiles").mkdir(parents=True)
    victim = root / "victim"
    victim.write_bytes(b"mine")
    (root / "tiles/.Tiles.zip.part").symlink_to(victim)
    with pytest.raises(StorageError, match="cannot write"):
        fetch(plan(facts, root))
    assert victim.read_bytes() == b"mine"


# Hostile archives, whose hash is right


def linked_zip() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        info = zipfile.ZipInfo("Tiles/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return written.getvalue()


def link() -> tarfile.TarInfo:
    info = tarfile.TarInfo("Tiles/link")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


def long_header() -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    return gzip.compress(info.tobuf() + bytes(2**20))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("Tiles.zip", zipped({"Tiles/../../x": b"x"}), "leads out of it"),
        ("Tiles.zip", zipped({"/Tiles/x": b"x"}), "leads out of it"),
        ("Tiles.zip", zipped({"Tiles\\..\\x": b"x"}), "leads out of it"),
        ("Tiles.zip", zipped({"Tiles/a": b"x", "Tiles/A": b"x"}), "holds 'Tiles/A' twice"),
        ("Tiles.zip", zipped({"/".join(["Tiles"] * 40): b"x"}), "40 depth, more than the limit"),
        ("Tiles.zip", linked_zip(), "is a link"),
        ("Tiles.zip", zipped({"Other/x": b"x"}), "holds no folder 'Tiles'"),
        ("Tiles.zip", b"no archive", "is damaged"),
        ("Tiles.zip", zipped({"Tiles/x": bytes(10**6)}), "unpacks to 976.6 KiB, more than the"),
        ("Tiles.tar.gz", tarred({"Tiles/../../x": b"x"}), "leads out of it"),
        ("Tiles.tar.gz", tarred({"Tiles/x": b"x"}, link()), "is a link"),
        ("Tiles.tar.gz", tarred({"Tiles/x": bytes(10**6)}), "unpacks to 976.6 KiB, more than the"),
        ("Tiles.tar.gz", tarred({"Tiles/x": PIXELS})[:-50], "is damaged"),
        ("Tiles.tar.gz", long_header(), "a header of 1073741824 bytes"),
        ("Tiles.tar.gz", b"no archive", "is damaged"),
    ],
)
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    server: Served, root: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes,
    told: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("TERRALIGN_LIMITS", "unpacked_bytes=500KiB")
    with pytest.raises(DataError, match=re.escape(told)):
        fetch(plan(entry(server, content, name), root))
    assert list(left_in(root)) == [f"tiles/.{name}.part"]
    assert list(root.parent.rglob("x")) == []


def test_a_zip_that_states_less_than_it_holds_is_refused(server: Served, root: Path) -> None:
    content = zipped({"Tiles/x": bytes(1000)}).replace(
        (1000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    )
    with pytest.raises(DataError, match=r"is damaged|has not the"):
        fetch(plan(entry(server, content), root))


# The catalog and the command


@pytest.mark.parametrize("name", ["eurosat-rgb", "eurosat-ms"])
def test_eurosat_is_fetched_with_its_spatial_split(name: str, root: Path) -> None:
    planned = plan_fetch(name, root)
    assert [one.place.name for one in planned if one.file.unpacks] == [
        {"eurosat-rgb": "EuroSAT_RGB", "eurosat-ms": "EuroSAT_MS"}[name]
    ]
    lists = {one.place.name for one in planned}
    assert {f"eurosat-spatial-{split}.txt" for split in ("train", "val", "test")} <= lists
    assert all(one.file.url.startswith("https://") for one in planned)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("aid", "aid has no address that is open to all: AID.zip from the authors' page"),
        ("synthetic-photos", "built in: nothing to fetch"),
        ("eurosat-rgbb", "did you mean 'eurosat-rgb'"),
    ],
)
def test_what_has_no_address_says_where_to_ask(
    name: str, told: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aid").mkdir()  # a folder of that name changes nothing
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=re.escape(told)):
        plan_fetch(name, root)


@pytest.fixture
def catalogued(server: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """EuroSAT's entry, whose file is on this machine."""
    facts = entry(server, zipped(TILES))
    monkeypatch.setattr(catalog, "_entries", lambda: {"eurosat-rgb": facts})
    read_facts.cache_clear()
    yield
    read_facts.cache_clear()


@pytest.mark.usefixtures("catalogued")
def test_the_command_asks_then_fetches_then_has_nothing_to_do(root: Path) -> None:
    words = ["fetch", "eurosat-rgb", "--data-root", str(root)]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "give --yes" in refused.stderr
    assert not root.exists()
    done = CliRunner().invoke(main, [*words, "--yes"])
    assert done.exit_code == 0, done.output
    assert "licence:" in done.stderr
    assert "1 file fetched into" in done.stdout
    again = CliRunner().invoke(main, [*words, "--json"])
    assert json.loads(again.stdout)["fetched"] == []
    assert "nothing to do" in CliRunner().invoke(main, words).stdout
