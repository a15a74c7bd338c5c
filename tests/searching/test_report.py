"""The page of a search: its hits with pictures from their scenes, or why there are none."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from imagery import NO_OFFSET, S2, dn, write_geotiff
from report_page import NASTY, Page
from terralign.cli import main
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import StorageError
from terralign.index.embed import embed_scenes
from terralign.index.search import Index, open_index
from terralign.searching.report import save_report

LAST = "S2A_MSIL2A_20220706T085611_N9999_R007_T33NZA_20220706T153419.tif"


@pytest.fixture(scope="module")
def scenes(space: EmbeddingSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of 36 windows each, one of them with a date, and their parts in `out`."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed, name in enumerate(("undated.tif", LAST)):
        write_geotiff(folder / name, dn(192, seed=seed), S2.band_names, tags=NO_OFFSET)
    paths = [folder / "undated.tif", folder / LAST]
    embed_scenes(space, paths, folder / "out", sensor=S2.name)
    return folder


@pytest.fixture(scope="module")
def index(scenes: Path) -> Index:
    return open_index(scenes / "out")


def test_a_page_shows_the_first_hits_with_pictures_and_places(
    space: EmbeddingSpace, index: Index, tmp_path: Path
) -> None:
    hits = space.search(index, NASTY, k=60)
    path = save_report(space, index, hits, tmp_path / "page.html")
    text = path.read_text()
    page = Page(text)
    shown = [source for source in page.sources if source.startswith("data:image/jpeg;base64,")]
    assert len(shown) == 2 * 50  # true and false colour
    assert len(set(shown)) == 2 * 50  # each of its own window
    assert "alert(" not in re.sub(r"&lt;script&gt;.*?&lt;/script&gt;", "", text)
    assert "script" not in page.tags
    assert NASTY in page.text
    assert all(source.startswith(("data:", "#hit-")) for source in page.sources)  # offline
    for hit in hits[:50]:
        assert f"score {hit.score:.4f}" in page.text
        assert hit.key in page.text
    assert hits[50].key not in page.text
    assert "10 more hits left out" in page.text
    assert "2022-07-06 08:56 UTC" in page.text
    assert page.tags.count("polygon") == 2 + 50  # the scenes, and the hits
    assert len(text) < 3_000_000  # of noise, which JPEG cannot make small


def test_a_scene_that_is_not_at_hand_is_named_and_stops_nothing(
    space: EmbeddingSpace, scenes: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "scenes"
    shutil.copytree(scenes, moved)
    shutil.rmtree(moved / "out")
    paths = [moved / "undated.tif", moved / LAST]
    embed_scenes(space, paths, moved / "out", sensor=S2.name)
    (moved / "undated.tif").unlink()
    index = open_index(moved / "out")
    hits = space.search(index, "a river", k=30)
    gone = sum(hit.facts["scene"] == "undated.tif" for hit in hits)
    page = Page(save_report(space, index, hits, tmp_path / "page.html").read_text())
    assert 0 < gone < 30
    assert page.text.count("No picture: ") == gone
    assert "undated.tif not found" in page.text
    assert page.tags.count("img") == 2 * (30 - gone)
    write_geotiff(moved / "undated.tif", dn(192, seed=5), S2.band_names, tags=NO_OFFSET)
    page = Page(save_report(space, index, hits, tmp_path / "page.html").read_text())
    assert page.text.count("undated.tif changed since it was embedded") == gone
    assert page.tags.count("img") == 2 * (30 - gone)


def test_the_command_writes_the_page_and_no_other_file(scenes: Path, tmp_path: Path) -> None:
    words = ["search", str(scenes / "out"), "a river", "-k", "3", "--device", "cpu", "--report"]
    out = tmp_path / "page.html"
    result = CliRunner().invoke(main, [*words, str(out)])
    assert result.exit_code == 0, result.output
    assert "report: " in result.stderr
    assert out.read_text().count("<article") == 3
    out.write_text("<html>mine</html>")
    result = CliRunner().invoke(main, [*words, str(out)])
    assert (result.exit_code, out.read_text()) == (1, "<html>mine</html>")
    assert "was not written by terralign" in result.stderr


def test_a_search_without_hits_is_a_page_too(
    space: EmbeddingSpace, index: Index, tmp_path: Path
) -> None:
    hits = space.search(index, "a river", k=3, max_cloud=0.1)  # of unknown cloud
    for _ in range(2):  # its own page is replaced
        page = Page(save_report(space, index, hits, tmp_path / "page.html").read_text())
    assert "0 hits" in page.text
    assert "svg" not in page.tags


def test_another_ending_is_refused_before_pictures_are_read(
    space: EmbeddingSpace, index: Index, tmp_path: Path
) -> None:
    hits = space.search(index, "a river", k=3)
    with pytest.raises(StorageError, match=r"ends in \.html"):
        save_report(space, index, hits, tmp_path / "page.txt")
