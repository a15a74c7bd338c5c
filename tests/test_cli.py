"""The command line: help, exit codes, one line per fault, JSON that parses."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner, Result
from PIL import Image

from imagery import S2, dn, write_geotiff
from small_run import SMALL_RECIPE
from terralign.cli import main
from terralign.cli.app import READING_ORDER
from terralign.cli.faults import name_options
from terralign.cli.info import LISTS, about
from terralign.encoders.clip import weights
from terralign.errors import Interrupted
from terralign.files import shipped_names
from terralign.report.searched import FoundWindow, SearchedText
from terralign.runs.run import RunResult
from terralign.sensors import SENSORS

pytestmark = pytest.mark.usefixtures("figures_undrawn")

COMMANDS = sorted(main.commands)


@pytest.fixture(autouse=True)
def quiet_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put logging and threads back as they were, and know no data root."""
    monkeypatch.delenv("TERRALIGN_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = ("", "terralign", "huggingface_hub", "httpx", "matplotlib", "rasterio")
    loggers = [logging.getLogger(name) for name in names]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def _fault(*arguments: object, code: int = 1) -> str:
    """What a faulty call says: one line on stderr, nothing on stdout, no traceback."""
    result = _call("--quiet", *arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    said = result.stderr
    assert "Traceback" not in said
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("terralign: ")
    assert "unexpected" not in said
    return lines[0]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _write_tif(path: Path, count: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", driver="GTiff", dtype="uint16", count=count, height=32, width=32
        ) as file:
            file.write(np.full((count, 32, 32), 1500, dtype=np.uint16))
    return path


# What libraries say


def test_a_librarys_warning_is_one_line_without_its_place_in_the_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["info", "sensors"], standalone_mode=False)
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # as where another thread has ended a filter
        warnings.warn("a CUDA driver\n  is too old", stacklevel=1)
        warnings.warn("Dataset has no geotransform, gcps, or rpcs.", stacklevel=1)
    assert capsys.readouterr().err.splitlines() == ["a CUDA driver is too old"]


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = _call(name, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"terralign {name}" in result.output
    assert main.commands[name].get_short_help_str()


def test_the_program_has_help_and_a_version() -> None:
    result = _call("--help")
    assert result.exit_code == 0
    assert all(name in result.output for name in COMMANDS)
    assert _call("-h").output == result.output
    assert "terralign, version" in _call("--version").output


def test_help_lists_the_commands_in_reading_order_with_whole_sentences() -> None:
    listed = _call("--help").output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == [
        name for name in READING_ORDER if name in COMMANDS
    ]
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "terralign", "run"], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: terralign run [OPTIONS] RECIPE")


def test_closed_streams_change_nothing() -> None:
    command = f"exec {shlex.quote(sys.executable)} -m terralign info sensors --json <&- 2>&-"
    done = subprocess.run(
        ["/bin/sh", "-c", command], stdout=subprocess.PIPE, timeout=60, check=True
    )
    assert json.loads(done.stdout)
    opened = "import terralign.__main__ as m, sys; m._open_streams(); print(sys.stderr.isatty())"
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(opened)} 2>&-"
    done = subprocess.run(
        ["/bin/sh", "-c", command], stdout=subprocess.PIPE, timeout=60, check=True
    )
    assert done.stdout == b"False\n"


def test_a_working_folder_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = _call("info", "sensors")
    assert result.exit_code == 1
    assert result.stderr == "terralign: the working folder is gone; change to one that exists\n"


_WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None
try:
    import terralign.files
except ImportError as error:
    print(error)
"""


def test_a_system_without_posix_locks_is_refused_in_words() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_FCNTL], capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert done.stdout.startswith("terralign runs on Linux and macOS; Windows is not supported")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_is_utf8_whatever_the_terminal_says(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "森林.toml").write_text('templates = ["{} 森林"]\n', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "terralign", "info", "森林.toml"], capture_output=True, timeout=60,
        cwd=tmp_path, check=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"},
    )  # fmt: skip
    assert "{} 森林" in done.stdout.decode("utf-8")


def test_help_does_not_wait_for_torch() -> None:
    check = "import sys, terralign.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0


_SLIPS = """
import sys
from terralign.cli import main

slips = [
    ["run", "nope.toml"], ["run", "nope"], ["run", "quickstart", "--data-root", "nowhere"],
    ["patch", "--recipe", "quickstart", "--base", "nowhere", "--out", "o"],
    ["evaluate", "MODEL", "--data", "nope.toml"], ["evaluate", "MODEL", "--data", "nope"],
    ["evaluate", "MODEL", "--data", "aid"], ["evaluate", "nowhere", "--data", "synthetic-photos"],
    ["evaluate", "MODEL", "--data", "synthetic-photos", "--prompts", "nope"],
    ["evaluate", "ViT-B-33:openai", "--data", "synthetic-photos"],
    ["classify", "MODEL", "nope.tif", "--labels", "a,b"],
    ["classify", "nowhere", "nope.tif", "--labels", "a,b"],
    ["classify", "MODEL", "MODEL", "--labels", "a,b", "--sensor", "nope.toml"],
    ["bench", "nope.toml", "--models", "MODEL", "--out", "o"],
    ["run", "typo.toml"], ["run", "short.toml"], ["run", "quickstart", "--set", "patch.epoch=2"],
    ["classify", "MODEL", "dn.tif", "--labels", "a,b", "--sensor", "sentinel2-l2"],
    ["classify", "MODEL", "dn.tif", "--labels", "a,b", "--sensor", "sentinel2-l2a"],
    ["embed", "dn.tif", "--model", "MODEL", "--sensor", "sentinel2-l2a", "--out", "o.parquet"],
    ["search", "dn.tif", "a", "--model", "MODEL", "--sensor", "sentinel2-l2a"],
    ["evaluate", "MODEL", "--data", "synthetic-photos", "--split", "tset"],
    ["ablate", "nope.toml"], ["pack", "nope.toml", "o"], ["info", "nope"], ["info", "nope.toml"],
]
for slip in slips:
    try:
        main([sys.argv[1] if word == "MODEL" else word for word in slip])
    except SystemExit as end:
        assert end.code == 1, slip
    assert "torch" not in sys.modules, slip
"""


def test_a_slip_in_a_path_or_name_does_not_wait_for_torch(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_geotiff(tmp_path / "dn.tif", dn(32), S2.band_names)
    (tmp_path / "typo.toml").write_text('name = "x"\n[base]\nmodle = "y"\n')
    (tmp_path / "short.toml").write_text('name = "x"\n')
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", _SLIPS, "model"], capture_output=True, text=True, timeout=60,
        check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    said = done.stderr.splitlines()
    assert len(said) == 26
    assert "unknown key 'base.modle'; did you mean 'model'?" in done.stderr
    assert "key 'base' is missing" in done.stderr
    assert "unknown sensor 'sentinel2-l2'; did you mean 'sentinel2-l2a'?" in done.stderr
    assert sum("--dn-offset" in line for line in said) == 3
    assert sorted(tmp_path.iterdir()) == before


def test_every_option_says_what_it_is() -> None:
    silent = [
        f"{name} {option.opts[0]}"
        for name, command in main.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help and not option.show_default
    ]
    assert silent == []


# Usage


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluat"],
        ["evaluate"],
        ["evaluate", "model"],
        ["evaluate", "model", "--data", "aid", "--task", "guess"],
        ["evaluate", "model", "--data", "aid", "--query", "text", "--tower", "rgb"],
        ["evaluate", "model", "--data", "aid", "--task", "retrieval", "--tower", "rgb"],
        ["classify", "model", "--labels", "a,b"],
        ["classify", "model", "a.png"],
        ["classify", "model", "a.png", "--labels", "one"],
        ["classify", "model", "a.png", "--labels", "one,,two"],
        ["classify", "model", "a.png", "--labels", '"one,two'],
        ["classify", "model", "a.png", "--label", "one"],
        ["classify", "model", "a.png", "--labels-file", "nowhere.txt"],
        ["classify", "model", "a.png", "--labels", "a,b", "--dn-offset", "much"],
        ["patch", "--recipe", "quickstart"],
        ["align", "--recipe", "micro-real", "--out", "o"],
        ["run"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = _call(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert result.stdout == ""


# What works


def test_evaluate_prints_one_json_object(finished_run: Path) -> None:
    result = _call(
        "evaluate", finished_run / "model", "--data", "synthetic-scenes", "--split", "val", "--json"
    )
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert {
        "metrics", "intervals", "num_samples", "space_id", "tower", "prompts", "dataset", "split",
        "task",
    } <= value.keys()  # fmt: skip
    assert (value["tower"], value["task"], value["split"]) == ("s2", "zero-shot", "val")
    assert value["num_samples"] == 40


def test_evaluate_takes_a_composite_and_names_it(finished_run: Path) -> None:
    found = {}
    for composite in ("paper-l2a", "eurosat"):
        result = _call(
            "evaluate", finished_run / "model", "--data", "synthetic-scenes", "--tower", "rgb",
            "--composite", composite, "--json",
        )  # fmt: skip
        values = json.loads(result.stdout)
        assert f"the {composite} composite" in values["how"]
        found[composite] = values["metrics"]
    assert found["paper-l2a"] != found["eurosat"]


def test_evaluate_prints_a_table_for_people(finished_run: Path) -> None:
    result = _call(
        "evaluate", finished_run / "base", "--data", "synthetic-scenes", "--split", "val"
    )
    assert result.exit_code == 0, result.stderr
    assert "the RGB tower on the paper-l2a composite of sentinel2-l2a" in result.stdout
    header = result.stdout.splitlines()[2].split()
    assert header == ["metric", "value", "interval", "chance", "samples"]
    assert "n = 40" in result.stdout
    assert "top1" in result.stdout
    assert "chance" in result.stdout


@pytest.fixture(autouse=True)
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic splits that no recipe limits, cut to 40 samples."""
    from terralign.datasets.synthetic import sets

    monkeypatch.setattr(sets, "NUM_SAMPLES", dict.fromkeys(sets.NUM_SAMPLES, 40))


def test_evaluate_retrieves_when_a_query_is_named(finished_run: Path) -> None:
    result = _call(
        "evaluate", finished_run / "model", "--data", "synthetic-scenes", "--query", "s1",
        "--gallery", "s2", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert (value["task"], value["tower"]) == ("retrieval", "s1 -> s2")
    assert "recall@1" in value["metrics"]


def test_classify_prints_json_and_lines(finished_run: Path, picture: Path, tmp_path: Path) -> None:
    scene = _write_tif(tmp_path / "scene.tif", 12)
    common = [finished_run / "model", "--labels", "forest, river,town"]
    result = _call("classify", *common, picture, "--json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert list(row["probabilities"]) == ["forest", "river", "town"]
    assert row["tower"] == "rgb"
    assert row["prompts"] == "synthetic-scenes"
    result = _call(
        "classify", *common, scene, "--sensor", "sentinel2-l2a", "--dn-offset", "0", "--bands",
        "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B11,B12",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert str(scene) in result.stdout
    assert "(s2)" in result.stdout


def test_classify_takes_names_with_commas_and_shows_how_many_are_left(
    finished_run: Path, picture: Path, tmp_path: Path
) -> None:
    name = "Land principally occupied by agriculture, with significant natural vegetation"
    (tmp_path / "names.txt").write_text("town\n\nsea\n", encoding="utf-8")
    model = finished_run / "model"
    result = _call(
        "classify", model, picture, "--labels", f'"{name}",Pastures', "--label", "a, b",
        "--labels-file", tmp_path / "names.txt", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert list(row["probabilities"]) == [name, "Pastures", "a, b", "town", "sea"]
    result = _call("classify", model, picture, "--labels", "a,b,c,d,e")
    shown = re.findall(r"\w+ ([\d.]+) %", result.stdout)
    assert ", 2 more " in result.stdout
    assert len(shown) == 4
    assert sum(map(float, shown)) == pytest.approx(100, abs=0.3)
    result = _call("classify", model, picture, "--labels", "a,b,c,d,e", "--top", "5")
    assert " more " not in result.stdout
    assert result.stdout.count("%") == 5


def test_classify_goes_on_after_a_broken_file(
    finished_run: Path, picture: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:100])
    files = [picture, broken, tmp_path / "missing.png", picture]
    common = ["--quiet", "classify", finished_run / "model", *files, "--labels", "forest,river"]
    result = _call(*common)
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == [str(picture)] * 2
    first, second, last = result.stderr.strip().splitlines()
    assert first.startswith(f"terralign: {broken} ")
    assert second == f"terralign: {files[2]} not found"
    assert last == "terralign: 2 of 4 inputs failed"
    result = _call(*common, "--json")
    assert result.exit_code == 1
    rows = json.loads(result.stdout)
    assert [sorted(row) for row in rows[1:3]] == [["error", "file"]] * 2
    assert rows[0] == rows[3]
    assert rows[0]["file"] == str(picture)
    result = _call(*common, "--tower", "nothing")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "has no tower 'nothing'" in result.stderr


def test_run_says_that_it_is_complete(finished_run: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL_RECIPE)
    result = _call("run", recipe, "--out", finished_run, "--json")
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert value["complete_before"] is True
    assert value["rows"] == json.loads((finished_run / "results.json").read_text())["rows"]
    result = _call("run", recipe, "--out", finished_run)
    assert "is already complete; nothing to do" in result.stdout
    assert f"model:  {finished_run / 'model'}" in result.stdout


def test_set_reaches_the_recipe(finished_run: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL_RECIPE)
    said = _fault("run", recipe, "--out", finished_run, "--set", "align.s1.epochs=9")
    assert "Different: align.s1.epochs: 2 -> 9" in said


@pytest.mark.parametrize("command", ["patch", "align"])
def test_single_stages_take_a_base_and_a_recipe(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def fake(recipe: Any, out: Path, **options: Any) -> RunResult:
        seen.update(recipe=recipe, out=out, **options)
        return RunResult(folder=out, rows=(), complete_before=False)

    monkeypatch.setattr("terralign.runs.run.run_recipe", fake)
    base = tmp_path / "b"
    base.mkdir()
    result = _call(
        command, "--recipe", "micro-real", "--base", base, "--out", tmp_path / "o",
        "--data-root", tmp_path, "--set", "seed=3", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert (seen["recipe"].base.model, seen["recipe"].seed) == (str(base), 3)
    assert (seen["recipe"].patch is None) == (command == "align")
    assert (seen["out"], seen["data_root"], seen["device"]) == (tmp_path / "o", tmp_path, "cpu")


def test_quickstart_runs_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def fake(recipe: Any, out: Path, **options: Any) -> RunResult:
        names.append(recipe.name)
        return RunResult(folder=out, rows=(), complete_before=False)

    monkeypatch.setattr("terralign.runs.run.run_recipe", fake)
    result = _call("quickstart", "--out", tmp_path / "q", "--json")
    assert names == ["quickstart"]
    assert json.loads(result.stdout) == {
        "folder": str(tmp_path / "q"),
        "complete_before": False,
        "rows": [],
    }


def test_quickstart_ends_with_what_its_search_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = {"row": 0, "column": 32, "height": 32, "width": 32, "score": 0.5, "is_right": True}
    found = SearchedText(text="snow", chance=0.1, hits=(FoundWindow(**window),))

    def fake(recipe: Any, out: Path, **options: Any) -> RunResult:
        return RunResult(folder=out, rows=(), complete_before=False, searched=(found,))

    monkeypatch.setattr("terralign.runs.run.run_recipe", fake)
    shown = _call("quickstart", "--out", tmp_path / "q").stdout
    assert re.search(r"1 +snow +100\.0 +10\.0\n", shown)
    [command] = re.findall(r"^search: terralign (search .*)$", shown, re.MULTILINE)
    assert shlex.split(command)[1] == str(tmp_path / "q" / "search" / "parts")
    values = json.loads(_call("quickstart", "--out", tmp_path / "q", "--json").stdout)
    assert values["searched"] == [{"text": "snow", "hits": 1, "precision": 1.0, "chance": 0.1}]


@pytest.mark.parametrize("what", [None, *LISTS, "model"])
def test_info_says_what_there_is(finished_run: Path, what: str | None) -> None:
    shown = finished_run / "model" if what == "model" else what
    arguments = ["info"] if shown is None else ["info", shown]
    result = _call(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    expected = {
        None: "torch", "datasets": "eurosat-ms", "models": "llama3-ms-clip",
        "sensors": "sentinel1-grd", "recipes": "quickstart", "suites": "micro",
        "studies": "losses", "prompts": "satellite", "model": "towers",
    }[what]  # fmt: skip
    assert expected in value
    assert expected in _call(*arguments).stdout


@pytest.mark.parametrize("what", ["recipes", "suites", "studies"])
def test_info_says_what_each_file_that_ships_is_for(what: str) -> None:
    folder = resources.files("terralign") / what
    shipped = {path.name for path in folder.iterdir() if path.name.endswith(".toml")}
    value = json.loads(_call("info", what, "--json").stdout)
    assert {f"{name}.toml" for name in value} == shipped
    notes = [one["note"] if what == "recipes" else one for one in value.values()]
    assert all(len(note) > 20 for note in notes)


@pytest.mark.parametrize("name", shipped_names("recipes"))
def test_every_recipe_states_what_it_needs_and_what_is_estimated(name: str) -> None:
    needs = json.loads(_call("info", "recipes", "--json").stdout)[name]["needs"]
    assert needs["source"]
    [line] = [
        line for line in _call("info", "recipes").stdout.splitlines() if line.split()[:1] == [name]
    ]
    assert f"{'~' if 'disk_gb' in needs['estimated'] else ' '}{needs['disk_gb']:g} GB" in line
    assert line.count("~") == len(needs["estimated"])


def test_info_on_a_model_names_its_towers(finished_run: Path) -> None:
    value = json.loads(_call("info", finished_run / "model", "--json").stdout)
    assert list(value["towers"]) == ["rgb", "s2", "s1"]
    assert value["towers"]["s1"]["bands"] == ["VV", "VH"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sentinel2-l2a", "442.7 nm, 60 m"),
        ("eurosat-ms", "sentinel2-l1c"),
        ("bigearthnet-43", "CDLA-Permissive-1.0"),  # of the entry that it is like
        ("micro-real", "micro-clip"),
        ("micro", "zero-shot"),
        ("losses", "mse-normalised"),
        ("plain", "{}"),
    ],
)
def test_info_describes_whatever_a_list_names(name: str, expected: str) -> None:
    result = _call("info", name)
    assert result.exit_code == 0, result.stderr
    assert expected in result.stdout
    assert "kind" in json.loads(_call("info", name, "--json").stdout)


def test_info_counts_templates_and_lists_those_of_one_set() -> None:
    assert "openai-imagenet     80 templates" in _call("info", "prompts").stdout
    lines = _call("info", "openai-imagenet").stdout.splitlines()
    assert len(lines) == 81
    assert lines[2].strip() == "a photo of many {}."


def test_info_on_a_study_of_variants_names_them_alone() -> None:
    said = _call("info", "bands").stdout
    assert "ten-and-twenty-metres" in said
    assert "varies" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\n[base]\nmodle = "y"\n', "unknown key 'base.modle'"),
        ('[base]\nmodel = "y"\n', "key 'name' is missing"),
        ('name = "s"\nentries = []\n', "entries"),
    ],
)
def test_info_says_what_makes_a_file_not_valid(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    assert said in json.loads(_call("info", tmp_path / "mine.toml", "--json").stdout)["not valid"]


def test_flags_may_stand_behind_the_command() -> None:
    assert _call("info", "sensors", "--quiet").output == _call("--quiet", "info", "sensors").output
    assert "Traceback" in _call("info", "nowhere", "--debug").stderr
    assert _call("info", "--quiet", "--verbose").exit_code == 2


def test_info_names_the_kinds_of_a_name_that_two_lists_have() -> None:
    assert set(json.loads(_call("info", "rgb", "--json").stdout)) == {"sensors", "suites"}


def test_info_describes_every_name_of_every_list() -> None:
    for what in LISTS:
        for name in about(what):
            assert about(name)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('name = "x"\nunit = "reflectance"\n[[bands]]\nname = "red"\n', "sensor"),
        ('templates = ["{}"]\n', "prompt set"),
        (SMALL_RECIPE, "recipe"),
        ('name = "s"\nrecipe = "quickstart"\nvary = { seed = [0, 1] }\n', "study"),
        ('name = "s"\n[[entries]]\ndata = "aid"\nsplit = "all"\ntasks = ["knn"]\n', "suite"),
    ],
)
def test_info_describes_a_toml_file(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    value = json.loads(_call("info", tmp_path / "mine.toml", "--json").stdout)
    assert value["kind"] == kind


def test_info_shows_the_classes_and_prompts_that_a_data_set_declares(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nreader = "folder"\nsensor = "rgb"\nroot = "images"\n'
        'prompts = ["an aerial photo of {}.", "{} from above."]\n'
        '[classes]\nDock = "a dock with ships"\nYard = "a container yard"\n'
    )
    value = json.loads(_call("info", tmp_path / "mine.toml", "--json").stdout)
    assert value["prompts"] == ["an aerial photo of {}.", "{} from above."]
    assert value["classes"] == ["a dock with ships", "a container yard"]
    lines = [one.strip() for one in _call("info", tmp_path / "mine.toml").stdout.splitlines()]
    assert "{} from above." in lines


def test_info_gives_classes_and_prompts_as_lists_and_their_names_apart() -> None:
    value = json.loads(_call("info", "datasets", "--json").stdout)
    assert value["eurosat-ms"]["class list"] == "eurosat"
    assert value["eurosat-ms"]["prompt set"] == "satellite"
    for one in value.values():
        assert all(isinstance(one.get(key, []), list) for key in ("classes", "prompts"))


def test_a_plain_word_is_answered_by_the_names_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("models", "recipes"):
        (tmp_path / name).mkdir()
    assert "path 'model'; did you mean 'models'?" in _call("info", "model").stderr
    assert "unknown recipe 'recipe'; " in _call("run", "recipe", "--out", "r").stderr


def test_a_slip_in_a_path_is_answered_whatever_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").touch()
    (tmp_path / "mine").mkdir()
    for words in (
        ("info", "mime.toml"),
        ("run", "mime.toml", "--out", "r"),
        ("evaluate", "starter", "--data", "mime.toml"),
        ("evaluate", "starter", "--data", "mime/m"),
        ("pack", "aid", "s", "--data-root", "mime"),
        ("pack", "--verify", "mime"),
        ("embed", "mime", "--model", "starter", "--out", "o"),
        ("embed", "mime/*.tif", "--model", "starter", "--out", "o"),
        ("classify", "mime/m", "mine", "--labels", "a,b"),
        ("score", "mime", "a river", "--out", "map.tif"),
        ("index", "mime"),
        ("search", "mine", "a river", "--polygon", "mime.toml"),
        ("search", "mime", "a river", "--start", "2022-01-01"),
    ):
        stderr = _call(*words).stderr
        assert "did you mean mine" in stderr, (words, stderr)


def test_the_table_of_data_sets_has_a_line_each() -> None:
    lines = _call("info", "datasets").stdout.splitlines()
    names = list(json.loads(_call("info", "datasets", "--json").stdout))
    assert [line.split()[0] for line in lines[1 : len(names) + 1]] == names
    assert len(lines) == len(names) + 3


@pytest.mark.parametrize(
    ("what", "near"), [("sentinel2-L2A", "sentinel2-l2a"), ("micro-reel", "micro-real")]
)
def test_info_names_what_is_near_and_what_it_takes(what: str, near: str) -> None:
    said = _fault("info", what)
    assert f"did you mean {near!r}?" in said
    assert (
        "Info takes a list (datasets, models, sensors, recipes, suites, studies, prompts)" in said
    )


# Faults: one clear line each


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Give bands= in the file's order", "Give --bands in the file's order"),
        ("Give bands= (--bands) in order", "Give --bands in order"),
        ("declare units='physical' (dB)", "declare --units physical (dB)"),
        ("declare it (dn_offset=0 for a product)", "declare it (--dn-offset 0 for a product)"),
        ("dn_offset=-1000", "--dn-offset -1000"),
        ("no option: size=, limit=3", "no option: size=, limit=3"),
        ("prompts == 3, x.bands=y", "prompts == 3, x.bands=y"),
    ],
)
def test_messages_name_options_in_place_of_keywords(text: str, expected: str) -> None:
    assert name_options(text, main.commands["classify"].params) == expected


def test_classify_speaks_of_its_options(finished_run: Path, tmp_path: Path) -> None:
    scene = _write_tif(tmp_path / "scene.tif", 12)
    common = ["classify", finished_run / "model", scene, "--labels", "a,b", "--sensor"]
    said = _fault(*common, "sentinel2-l2a")
    assert "--bands" in said
    assert "bands=" not in said
    said = _fault(
        *common, "sentinel2-l2a", "--bands", ",".join(SENSORS["sentinel2-l2a"].band_names)
    )
    assert "--dn-offset" in said
    assert "dn_offset=" not in said


def test_a_typo_in_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "typo.toml"
    recipe.write_text(SMALL_RECIPE.replace("max_supported_drop", "max_suported_drop"))
    said = _fault("run", recipe, "--out", tmp_path / "o")
    assert "unknown key 'patch.max_suported_drop'; did you mean 'max_supported_drop'?" in said
    assert not (tmp_path / "o").exists()


def test_a_missing_band(finished_run: Path, tmp_path: Path) -> None:
    scene = _write_tif(tmp_path / "scene.tif", 3)
    said = _fault(
        "classify", finished_run / "model", scene, "--labels", "a,b", "--sensor", "sentinel2-l2a",
        "--bands", "B04,B03,B02", "--dn-offset", "0", "--tower", "s2",
    )  # fmt: skip
    assert "pixels have bands B04, B03, B02; tower needs B01, B05" in said


def test_an_unknown_band(finished_run: Path, tmp_path: Path) -> None:
    scene = _write_tif(tmp_path / "scene.tif", 1)
    said = _fault(
        "classify", finished_run / "model", scene, "--labels", "a,b", "--sensor", "sentinel2-l2a",
        "--bands", "B99", "--dn-offset", "0",
    )  # fmt: skip
    assert "B99" in said
    assert "B8A" in said


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "towers/s2.safetensors"])
def test_a_truncated_safetensors_file(finished_run: Path, tmp_path: Path, name: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished_run / "model", model)
    os.truncate(model / name, (model / name).stat().st_size // 2)
    said = _fault("info", model)
    assert f"{model / name} was changed or truncated" in said
    if "/" not in name:
        (model / "space.json").unlink()  # a plain open_clip folder has no hashes
        assert "not a whole safetensors file" in _fault("info", model)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_bomb_is_never_executed(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pt"
    bomb.write_bytes(pickle.dumps({"state_dict": _Bomb(tmp_path / "exploded")}))
    said = _fault("evaluate", f"ViT-B-32:{bomb}", "--data", "synthetic-photos")
    assert str(bomb) in said
    assert "not loaded" in said
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb.read_bytes())  # noqa: S301 (the bomb itself works)
    assert (tmp_path / "exploded").exists()


def test_a_jpeg_that_is_a_text_file(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("I am not a picture")
    said = _fault("classify", finished_run / "model", tmp_path / "a.jpg", "--labels", "a,b")
    assert str(tmp_path / "a.jpg") in said


def test_a_geotiff_with_the_wrong_number_of_bands(finished_run: Path, tmp_path: Path) -> None:
    scene = _write_tif(tmp_path / "scene.tif", 5)
    said = _fault(
        "classify", finished_run / "model", scene, "--labels", "a,b", "--sensor",
        "sentinel2-l2a", "--dn-offset", "0",
    )  # fmt: skip
    assert str(scene) in said
    assert "5" in said


@pytest.mark.parametrize("command", ["evaluate", "run"])
def test_a_data_root_that_is_not_there(finished_run: Path, tmp_path: Path, command: str) -> None:
    nowhere = tmp_path / "nowhere"
    if command == "evaluate":
        arguments: list[object] = ["evaluate", finished_run / "model", "--data", "aid"]
    else:
        recipe = tmp_path / "small.toml"
        recipe.write_text(SMALL_RECIPE.replace('"synthetic-scenes"', '"eurosat-rgb"', 1))
        arguments = ["run", recipe, "--out", tmp_path / "o"]
    said = _fault(*arguments, "--data-root", nowhere)
    assert f"data root {nowhere} not found" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info", "nowhere"], "unknown name or path 'nowhere'"),
        (["evaluate", "nowhere", "--data", "aid"], "no model at 'nowhere'"),
        (["run", "quikstart"], "did you mean 'quickstart'?"),
        (["run", "quickstart", "--set", "patch.lr"], "expected KEY=VALUE"),
        (["evaluate", "MODEL", "--data", "eurosat"], "did you mean 'eurosat-"),
        (["evaluate", "MODEL", "--data", "aid"], "needs a data root"),
        (
            ["evaluate", "MODEL", "--data", "synthetic-photos", "--split", "tst"],
            "splits: train, val, test",
        ),
        (["evaluate", "MODEL", "--data", "synthetic-photos", "--tower", "s2"], "tower 's2' takes"),
        (["evaluate", "MODEL", "--data", "synthetic-scenes", "--tower", "s3"], "no tower 's3'"),
        (["evaluate", "MODEL", "--data", "synthetic-scenes", "--prompts", "x"], "prompt set 'x'"),
        (
            ["evaluate", "MODEL", "--data", "synthetic-scenes", "--composite", "eurosat"],
            "composite has no effect on s2, which takes bands",
        ),
        (
            [
                "evaluate",
                "MODEL",
                "--data",
                "synthetic-scenes",
                "--tower",
                "rgb",
                "--composite",
                "x",
            ],
            "unknown composite 'x' of sensor 'sentinel2-l2a'",
        ),
        (
            ["evaluate", "MODEL", "--data", "synthetic-photos", "--composite", "eurosat"],
            "synthetic-photos, which holds RGB pictures",
        ),
        (["classify", "MODEL", "nowhere.png", "--labels", "a,b"], "nowhere.png"),
        (["classify", "MODEL", "MODEL", "--labels", "a,b", "--sensor", "s2"], "sensor 's2'"),
    ],
)
def test_other_faults(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    real = [str(finished_run / "model") if one == "MODEL" else one for one in arguments]
    assert said in _fault(*real)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills while the pretrained base is written; with room again, the run goes on."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL_RECIPE)
    folder = tmp_path / "o"

    def full(state: Any, path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(weights, "save_file", full)
        said = _fault("run", recipe, "--out", folder)
    assert "no space left while writing" in said
    assert "free some space and run the same command again" in said
    assert list(folder.rglob("*.safetensors")) == []
    assert not (folder / "base").exists()
    assert not (folder / "results.json").exists()
    assert [path.name for path in folder.rglob("*.partial") if path.is_file()] == []


def test_a_disk_that_is_full_in_truth(tmp_path: Path) -> None:
    """A file system of half a megabyte, where it may be mounted."""
    place = tmp_path / "small-disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("no file system may be mounted here")
    try:
        recipe = tmp_path / "small.toml"
        recipe.write_text(SMALL_RECIPE)
        said = _fault("run", recipe, "--out", place / "o")
        assert "no space left while writing" in said
        assert not [path for path in place.rglob("*") if path.suffix in (".pt", ".safetensors")]
        assert not list(place.rglob("*.partial"))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_an_unexpected_fault_is_one_line_and_debug_shows_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(what: str | None) -> None:
        raise ZeroDivisionError("a bug\nof ours")

    monkeypatch.setattr("terralign.cli.info.about", broken)
    result = _call("info")
    assert result.exit_code == 1
    assert result.stderr == (
        "terralign: unexpected ZeroDivisionError: a bug of ours; "
        "please report it with the output of --debug\n"
    )
    result = _call("--debug", "info")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "in broken" in result.stderr


@pytest.mark.parametrize(
    "fault",
    [MemoryError(), ImportError("libtorch.so: failed to map segment from shared object")],
)
def test_exhausted_memory_is_named(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def broken(what: str | None) -> None:
        raise fault

    monkeypatch.setattr("terralign.cli.info.about", broken)
    result = _call("info")
    assert result.exit_code == 1
    assert result.stderr.startswith("terralign: memory is exhausted (")
    assert "please report" not in result.stderr


def test_debug_shows_the_traceback_of_a_users_fault() -> None:
    result = _call("--debug", "run", "quikstart")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.rstrip().endswith("(or the path of a .toml file)")


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        (Interrupted("patch: stopped and saved", 15), 143, "patch: stopped and saved"),
        (Interrupted("patch: stopped and saved", 2), 130, "patch: stopped and saved"),
        (KeyboardInterrupt(), 130, "run the same command again to resume"),
    ],
)
def test_a_stop_exits_as_its_signal_does(
    monkeypatch: pytest.MonkeyPatch, stop: BaseException, code: int, said: str
) -> None:
    def stopped(*args: Any, **options: Any) -> None:
        raise stop

    monkeypatch.setattr("terralign.runs.run.run_recipe", stopped)
    assert said in _fault("run", "quickstart", code=code)


_TERMINATED = """
import os, signal, sys
from terralign.cli import main
from terralign.cli.info import about
from terralign.cli.app import READING_ORDER
from terralign.cli.faults import name_options
from terralign.encoders.space import EmbeddingSpace

def load(source):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("cleared away")

EmbeddingSpace.load = load
main(["--quiet", "evaluate", "hf-hub:x/y", "--data", "synthetic-photos"])
"""


def test_sigterm_outside_training_ends_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TERMINATED], capture_output=True, text=True, timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    assert done.stdout == "cleared away\n"
    assert done.stderr == "terralign: stopped\n"


def test_the_handler_of_sigterm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert _call("info", "recipes").exit_code == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "MODEL", "--data", "synthetic-photos"],
        ["classify", "MODEL", "PICTURE", "--labels", "a,b"],
    ],
)
def test_a_device_that_is_not_there(
    finished_run: Path, picture: Path, arguments: list[str]
) -> None:
    paths = {"MODEL": str(finished_run / "model"), "PICTURE": str(picture)}
    filled = [paths.get(one, one) for one in arguments]
    assert "cannot compute on device 'gpu'" in _fault(*filled, "--device", "gpu")


def test_quiet_says_nothing_but_results(finished_run: Path) -> None:
    arguments = ["evaluate", finished_run / "model", "--data", "synthetic-photos"]
    assert _call("--quiet", *arguments).stderr == ""
    assert "computing with" not in _call(*arguments).stderr
    assert "computing with 1 thread" in _call("--verbose", *arguments).stderr
    assert _call("--verbose", "--quiet", *arguments).exit_code == 2
