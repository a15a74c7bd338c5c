"""Build the source distribution and the wheel, check both, and try the wheel where nothing else is.

    python tools/release.py [--out dist] [--reuse]

The wheel must hold exactly the files of `src/terralign`, the source distribution what the wheel is
built from, and neither may reach `MAX_BYTES`. The wheel is then installed into a new environment
and runs `COMMANDS` in an empty folder, without network. `--reuse` installs the wheel alone and
takes what it depends on from the environment that runs this script: that saves 5 GB, but a
dependency that pyproject.toml forgets is then not noticed.

Needs the package `build` (extra `dev`), and pip's index for the build environment.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "terralign"
MAX_BYTES = 70_000_000
SOURCES = {
    "src", "CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml",
    "PKG-INFO", ".gitignore",
}  # fmt: skip
"""What a source distribution may hold at its top: the last two are the build backend's own."""
COMMANDS = ("--version", "info recipes", "demo")
DEAD_PROXY = "http://127.0.0.1:9"


def main() -> None:
    """Parse the command line, build, check and try."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for both files")
    parser.add_argument("--reuse", action="store_true", help="use the dependencies installed here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "dist"
        run(sys.executable, "-m", "build", "--outdir", str(built), str(ROOT))
        [source], [wheel] = built.glob("*.tar.gz"), built.glob("*.whl")
        faults = [*size_faults(source), *size_faults(wheel)]
        faults += source_faults(source_names(source)) + wheel_faults(wheel_names(wheel), files())
        if faults:
            sys.exit("\n".join(faults))
        try_wheel(wheel, Path(folder) / "clean", arguments.reuse)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for path in (source, wheel):
            target = arguments.out / path.name
            target.write_bytes(path.read_bytes())
            print(f"{target}: {target.stat().st_size:,} bytes")


def run(*words: str, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> None:
    """Run a command; its failure ends the script."""
    print("+", *words, flush=True)
    finished = subprocess.run(words, cwd=cwd, env=environment, check=False)
    if finished.returncode:
        sys.exit(f"{' '.join(words)} ended with {finished.returncode}")


def files() -> set[str]:
    """The files of the package, by their path below `src`."""
    return {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def wheel_names(path: Path) -> set[str]:
    """The files in a wheel."""
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def source_names(path: Path) -> set[str]:
    """The files in a source distribution, without the folder that all of them lie in."""
    with tarfile.open(path) as archive:
        return {one.name.split("/", 1)[1] for one in archive.getmembers() if one.isfile()}


def size_faults(path: Path) -> list[str]:
    """One line if a file is too large to be uploaded."""
    size = path.stat().st_size
    return [f"{path.name} has {size:,} bytes, not under {MAX_BYTES:,}"] * (size >= MAX_BYTES)


def wheel_faults(names: set[str], expected: set[str]) -> list[str]:
    """A line for each file that a wheel lacks, or holds besides the package and its metadata."""
    held = {name for name in names if ".dist-info/" not in name}
    lacks = [f"the wheel lacks {name}" for name in sorted(expected - held)]
    return lacks + [f"the wheel holds {name}" for name in sorted(held - expected)]


def source_faults(names: set[str]) -> list[str]:
    """A line for each file that does not belong into a source distribution."""
    return [
        f"the source distribution holds {name}"
        for name in sorted(names)
        if name.split("/", 1)[0] not in SOURCES
    ]


def try_wheel(wheel: Path, folder: Path, reuse: bool) -> None:
    """Install into a new environment in `folder`, and run `COMMANDS` beside it."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    run(str(python), "-m", "pip", "install", "-q", *["--no-deps"] * reuse, str(wheel), cwd=folder)
    if reuse:
        lend_dependencies(python)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), DEAD_PROXY)
    work = folder / "work"
    work.mkdir()
    origin = "import sys, terralign; sys.exit(not terralign.__file__.startswith(sys.prefix))"
    run(str(python), "-c", origin, cwd=work, environment=environment)
    for words in COMMANDS:
        run(str(python.parent / "terralign"), *words.split(), cwd=work, environment=environment)


def lend_dependencies(python: Path) -> None:
    """Add this environment's packages to the path of another, where they come last.

    The path is added as such: what its own `.pth` files add, an editable terralign among it, is
    not.
    """
    where = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(where.stdout.strip()) / "lent.pth").write_text("\n".join(sorted(lent)) + "\n")


if __name__ == "__main__":
    main()
