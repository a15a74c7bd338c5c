"""Work that is kept: done, resumed or made, and shared by a cache."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from terralign.errors import RecipeError, StorageError
from terralign.train.stage import Stage, run_stage


def _stage(folder: Path, depends: Any = 1, cache: Path | None = None) -> Stage:
    return Stage(
        what="a tower", depends={"on": depends}, note=folder / "tower.json",
        files=("tower.bin", "parts"), logs=("log.jsonl",), cache=cache,
    )  # fmt: skip


def _run(stage: Stage, made: list[str], *, renew: bool = False) -> dict[str, Any]:
    def make() -> dict[str, Any]:
        folder = stage.note.parent
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        (folder / "tower.bin").write_text("weights")
        (folder / "parts" / "one").write_text("one")
        (folder / "log.jsonl").write_text("{}")
        made.append(stage.identity)
        return {"value": 0.1 + 0.2}

    return run_stage(stage, make, renew=renew)


def test_a_complete_stage_is_read(tmp_path: Path) -> None:
    made: list[str] = []
    first = _run(_stage(tmp_path), made)
    assert _run(_stage(tmp_path), made) == first
    assert first == {"identity": _stage(tmp_path).identity, "value": 0.1 + 0.2}
    assert len(made) == 1


@pytest.mark.parametrize("missing", ["tower.json", "tower.bin"])
def test_a_stage_without_its_note_or_a_file_is_made_again(tmp_path: Path, missing: str) -> None:
    made: list[str] = []
    _run(_stage(tmp_path), made)
    (tmp_path / missing).unlink()
    _run(_stage(tmp_path), made)
    assert len(made) == 2


def test_a_stage_that_fails_leaves_no_note(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise OSError("cable pulled")

    with pytest.raises(OSError, match="cable pulled"):
        run_stage(_stage(tmp_path), fail)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_identity_is_refused(tmp_path: Path) -> None:
    made: list[str] = []
    _run(_stage(tmp_path), made)
    with pytest.raises(RecipeError, match="holds a tower of other settings, data or weights"):
        _run(_stage(tmp_path, depends=2), made)


@pytest.mark.parametrize("content", ["[]", "{}", '{"identity": 3}', "{"])
def test_a_damaged_note_is_refused_or_set_aside(tmp_path: Path, content: str) -> None:
    made: list[str] = []
    first = _run(_stage(tmp_path), made)
    (tmp_path / "tower.json").write_text(content)
    with pytest.raises(StorageError, match=r"tower\.json is (damaged|not valid JSON)"):
        _run(_stage(tmp_path), made)
    assert _run(_stage(tmp_path), made, renew=True) == first
    assert (tmp_path / "tower.json.damaged").read_text() == content


def test_folders_with_one_cache_make_a_stage_once(tmp_path: Path) -> None:
    made: list[str] = []
    cache = tmp_path / "cache"
    first = _run(_stage(tmp_path / "a", cache=cache), made)
    assert _run(_stage(tmp_path / "b", cache=cache), made) == first
    _run(_stage(tmp_path / "c", depends=2, cache=cache), made)
    assert len(made) == 2
    for name in ("tower.bin", "parts/one"):
        assert (tmp_path / "b" / name).samefile(tmp_path / "a" / name)
    (tmp_path / "b" / "log.jsonl").write_text("more")  # a copy: runs write to their logs
    assert (tmp_path / "a" / "log.jsonl").read_text() == "{}"


def test_a_stage_that_was_complete_is_given_to_the_cache(tmp_path: Path) -> None:
    made: list[str] = []
    _run(_stage(tmp_path / "a"), made)
    _run(_stage(tmp_path / "a", cache=tmp_path / "cache"), made)
    _run(_stage(tmp_path / "b", cache=tmp_path / "cache"), made)
    assert len(made) == 1


def test_stages_named_by_their_identity_share_a_folder(tmp_path: Path) -> None:
    stages = [
        Stage.named_by_identity("a view", {"on": on}, tmp_path, prefix="views-", suffixes=(".npy",))
        for on in (1, 2)
    ]
    for stage in stages:
        assert stage.files == (f"views-{stage.identity}.npy",)
        (tmp_path / stage.files[0]).touch()
        run_stage(stage, dict)
    kept = [json.loads(stage.note.read_text())["identity"] for stage in stages]
    assert kept == [stage.identity for stage in stages]
    assert kept[0] != kept[1]


@pytest.mark.parametrize("content", ["", '{"identity": "another"}'])
def test_a_damaged_copy_in_the_cache_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    made: list[str] = []
    cache = tmp_path / "cache"
    stage = _stage(tmp_path / "a", cache=cache)
    first = _run(stage, made)
    (cache / stage.identity / "tower.json").write_text(content)
    assert _run(_stage(tmp_path / "b", cache=cache), made) == first
    assert len(made) == 2
    assert "not used from the cache" in caplog.text


def test_the_cache_replaces_what_an_interrupted_stage_left(tmp_path: Path) -> None:
    made: list[str] = []
    cache = tmp_path / "cache"
    _run(_stage(tmp_path / "a", cache=cache), made)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tower.bin").write_text("half, or of other settings")
    _run(_stage(tmp_path / "b", cache=cache), made)
    assert (tmp_path / "b" / "tower.bin").read_text() == "weights"
    assert len(made) == 1


def test_a_stage_that_another_run_makes_is_waited_for(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    begun, made, found = threading.Event(), list[str](), list[dict[str, Any]]()

    def make() -> dict[str, Any]:
        begun.set()
        time.sleep(0.2)
        (tmp_path / "a" / "parts").mkdir(parents=True)
        (tmp_path / "a" / "tower.bin").write_text("weights")
        (tmp_path / "a" / "parts" / "one").write_text("one")
        return {"value": 1}

    first = threading.Thread(
        target=lambda: found.append(run_stage(_stage(tmp_path / "a", cache=cache), make))
    )
    first.start()
    begun.wait(timeout=10)
    found.append(_run(_stage(tmp_path / "b", cache=cache), made))
    first.join(timeout=10)
    assert made == []
    assert found[0] == found[1]


class _Form(BaseModel):
    value: float


@pytest.mark.parametrize("content", ["{}", '{"value": "much"}', '{"value": null}', '{"values": 1}'])
def test_a_note_of_another_form_is_refused_or_set_aside(tmp_path: Path, content: str) -> None:
    stage = Stage.named_by_identity("a curve", {"on": 1}, tmp_path, form=_Form)
    stage.note.write_text(json.dumps({"identity": stage.identity, **json.loads(content)}))
    with pytest.raises(StorageError, match=r"\.json is damaged: .*value.*; delete it"):
        run_stage(stage, lambda: {"value": 1})
    assert run_stage(stage, lambda: {"value": 1}, renew=True)["value"] == 1
