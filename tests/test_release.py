"""What `tools/release.py` refuses to release."""

from __future__ import annotations

import importlib.util
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
assert _spec is not None
assert _spec.loader is not None
release = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(release)


def test_the_package_holds_what_is_read_at_run_time() -> None:
    names = release.files()
    assert {"terralign/py.typed", "terralign/recipes/quickstart.toml"} <= names
    assert [name for name in names if "__pycache__" in name or name.startswith("tests")] == []


def test_a_wheel_that_lacks_a_recipe_or_holds_a_test_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("terralign/cli.py", "terralign-1.dist-info/METADATA", "tests/test_cli.py"):
            archive.writestr(name, "")
    names = release.wheel_names(path)
    assert release.wheel_faults(names, {"terralign/cli.py", "terralign/one.toml"}) == [
        "the wheel lacks terralign/one.toml",
        "the wheel holds tests/test_cli.py",
    ]
    assert release.wheel_faults(names, {"terralign/cli.py", "tests/test_cli.py"}) == []


def test_a_source_distribution_that_holds_tests_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("one-1/src/terralign/cli.py", "one-1/PKG-INFO", "one-1/tests/data/x.tif"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    faults = release.source_faults(release.source_names(path))
    assert faults == ["the source distribution holds tests/data/x.tif"]


@pytest.mark.parametrize(("size", "refused"), [(99, False), (100, True)])
def test_a_file_that_is_too_large_is_refused(
    size: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "MAX_BYTES", 100)
    path = tmp_path / "one.whl"
    path.write_bytes(bytes(size))
    assert bool(release.size_faults(path)) == refused
