"""Files that are whole or not there, and what is said of those that cannot be read or written."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terralign.errors import DataError, StorageError
from terralign.files import (
    HASH_LENGTH,
    atomic_folder,
    atomic_path,
    check_free_space,
    claimed,
    clear_partials,
    decode_text,
    find_missing,
    hash_file,
    hash_json,
    name_of_folder,
    not_found,
    read_json,
    read_lines,
    read_text,
    read_toml,
    require_folder,
    write_json,
    write_text,
)
from terralign.limits import LIMITS


def write_and_fail(path: Path, fault: BaseException) -> None:
    with atomic_path(path) as partial:
        partial.write_text("half")
        raise fault


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_is_whole_and_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "grün")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "grün".encode()
    assert names(tmp_path / "new") == ["a.txt"]


def test_what_a_library_writes_beside_a_file_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with atomic_path(path, alone=True) as begun:
        (begun.parent / ".tmpAbCdEf").write_text("half")
        begun.with_suffix(".new").write_text("whole")
        begun.with_suffix(".new").replace(begun)  # the file that was locked is another one now
        clear_partials(tmp_path)  # as another process does
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_text() == "whole"
    with pytest.raises(ZeroDivisionError), atomic_path(path, alone=True) as begun:
        begun.write_text(str(1 // 0))
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_text() == "whole"


@pytest.mark.parametrize("fault", [ValueError("wrong"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_part(tmp_path: Path, fault: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(fault)):
        write_and_fail(path, fault)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_in_one_line(tmp_path: Path, code: int) -> None:
    with pytest.raises(StorageError, match=r"left while writing .*a\.txt \(\d+ MB free\)"):
        write_and_fail(tmp_path / "a.txt", OSError(code, os.strerror(code)))
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_device_that_is_full_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="no space left"), atomic_path(tmp_path / "a.pt"):
        (tmp_path / "full").write_bytes(b"0" * 100_000)
    (tmp_path / "full").unlink()
    assert names(tmp_path) == []


def test_torchs_own_words_for_a_full_disk_are_understood(tmp_path: Path) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None: ...

    with pytest.raises(StorageError, match="no space left"), atomic_path(tmp_path / "a.pt"):
        torch.save({"a": torch.zeros(10)}, Full())  # type: ignore[arg-type]


def test_a_read_only_disk_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(StorageError, match=r"cannot write .*Read-only"), atomic_path(path) as part:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(part))


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*taken.a\.txt"):
        write_text(tmp_path / "taken" / "a.txt", "x")


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*a\.txt"):
        write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == ["a.txt"]


def test_a_missing_input_is_not_mistaken_for_a_failed_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="input"), atomic_path(tmp_path / "a.txt"):
        (tmp_path / "input").read_text()


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "Ä"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_json_never_holds_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"", b"[" * 100_000, b'["\\ud800"]'])
def test_damaged_json_names_the_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(StorageError, match=r"a\.json is not valid JSON"):
        read_json(path)


def test_missing_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*a\.json: No such file"):
        read_json(tmp_path / "a.json")


def test_huge_json_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with open(path, "wb") as file:
        file.truncate(LIMITS["json_bytes"] + 1)  # a sparse file: it takes no space
    with pytest.raises(StorageError, match="more than the limit of 256 MiB"):
        read_json(path)


def test_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1000)
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"abc" * 1000).hexdigest()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), json_values))
def test_hash_of_json_does_not_depend_on_order_or_on_writing(value: dict[str, object]) -> None:
    reordered = dict(reversed(list(value.items())))
    assert hash_json(reordered) == hash_json(value)
    assert hash_json(json.loads(json.dumps(value, indent=3))) == hash_json(value)
    assert len(hash_json(value)) == HASH_LENGTH


def test_hash_of_json_tells_values_apart() -> None:
    values: list[list[object]] = [[], [0], ["0"], [[0]], [0, 0], [None], [0.5]]
    assert len({hash_json(value) for value in values}) == len(values)
    assert hash_json((1, 2)) == hash_json([1, 2])  # type: ignore[arg-type]


def test_free_space_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    check_free_space(tmp_path / "not" / "there", 1)
    with pytest.raises(StorageError, match="MB free; free some space"):
        check_free_space(tmp_path, 10**18)


# Text as other systems and programs save it

NAMES = ["[classes]", 'River = "Fluß"', 'Forest = "森林"']


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("rest", ["", "\x1a"])
def test_text_is_read_as_it_was_meant(tmp_path: Path, end: str, encoding: str, rest: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes("".join([*(line + end for line in NAMES), rest]).encode(encoding))
    assert read_text(path) == "\n".join(NAMES) + "\n"
    assert read_lines(path) == NAMES
    assert read_toml(path) == {"classes": {"River": "Fluß", "Forest": "森林"}}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_json_with_a_mark_of_either_byte_order_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('\ufeff{"a": "é"}'.encode(encoding))
    assert read_json(path) == {"a": "é"}


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\x00\ufeff\x1a")))
def test_decoding_undoes_encoding(text: str) -> None:
    assert decode_text(text.encode()) == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b'a = 1\r\nb = "caf\xe9"\r\n',
            "line 2 has the byte 0xe9, 'é' in Windows-1252; save it as UTF-8",
        ),
        ("a = 1\n".encode("utf-16-le"), "zero bytes: no text, or UTF-16 without a byte order mark"),
        (b"\xff\xfea\x00b", "begins as UTF-16-LE text and is damaged"),
        ('a = "é"\n'.encode("utf-16-be"), "is not UTF-8 text; save it as UTF-8"),
    ],
)
def test_text_of_another_encoding_is_refused_with_its_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        read_toml(path, what="recipe")
    assert str(caught.value).startswith(f"cannot read recipe {path}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("name = “mine”", "line 2 holds U+201C LEFT DOUBLE QUOTATION MARK: write a plain quote"),
        ("name\u00a0= 1", "line 2 holds U+00A0 NO-BREAK SPACE: write a plain space"),
        ("name = −1", "line 2 holds U+2212 MINUS SIGN: write a plain character"),
        ("\ufeffname = 1", "line 2 holds U+FEFF ZERO WIDTH NO-BREAK SPACE: write a plain space"),
    ],
)
def test_typographic_letters_in_toml_are_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f'note = "“quoted”"\n{line}\n', encoding="utf-8")
    with pytest.raises(StorageError, match="is not valid TOML") as caught:
        read_toml(path)
    assert str(caught.value).endswith(said)


def test_a_zero_byte_anywhere_is_no_text() -> None:
    with pytest.raises(ValueError, match="zero bytes"):
        decode_text(b"a = 1\n" * 1000 + b"\0")


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(StorageError, match="/dev/zero has more than the limit of 1 MiB"):
        read_text(Path("/dev/zero"), size="toml_bytes")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"x = {'[' * 90}{']' * 90}", "is nested in 81 levels, more than the limit of 80 levels"),
        (f"x = {'[' * 100_000}", "is not valid TOML"),
        (f"{'[[x]]' * 1}\na = {'{a = ' * 90}1{'}' * 90}", "is nested in 81 levels"),
        ("seed = 9223372036854775808", "holds an integer of more than 64 bits"),
        (f"x = [{{ y = -{'9' * 4000} }}]", "holds an integer of more than 64 bits"),
        (f"x = {'9' * 5000}", "is not valid TOML"),
    ],
)
def test_toml_beyond_measure_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(StorageError, match=rf"a\.toml {said}"):
        read_toml(path)


@pytest.mark.parametrize("name", ["small", "a.b", "Über 2", "x" * 200, "console", "s2+s1=4"])
def test_names_that_a_folder_may_have(tmp_path: Path, name: str) -> None:
    assert name_of_folder(name) == name
    (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", ".a", "a.", " a", "a ", "/a", "../a", "a/b", "a\\b", "a\nb", "a\x00",
        "\u202ea", "x" * 201, "ü" * 101, "con", "NUL.txt", "com1",
    ],
)  # fmt: skip
def test_names_that_would_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be the name of a folder: it \w+"):
        name_of_folder(name)


# Folders of one process


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    folder.mkdir()
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(StorageError, match=r"\.lock cannot be opened as a file .*; delete it"):
        claimed(folder).__enter__()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_lock_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ".lock"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(
        StorageError, match=r"\.lock (cannot be opened as|is not) a file.*delete it"
    ):
        claimed(tmp_path).__enter__()


def test_what_a_lock_holds_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("notes of mine")
    with claimed(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "notes of mine"


def test_links_in_the_place_of_parts_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (f".a.txt.{os.getpid()}.partial", "a.txt", f".m.{os.getpid()}.partial"):
        (tmp_path / name).symlink_to(victim)
    write_text(tmp_path / "a.txt", "new")
    with atomic_folder(tmp_path / "m") as partial:
        (partial / "b").write_text("new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "m" / "b").read_text() == "new"
    assert names(tmp_path) == ["a.txt", "m", "victim"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(text: str, fault: bool = False) -> None:
        with atomic_folder(tmp_path / "m") as partial:
            (partial / text).write_text(text)
            if fault:
                raise DataError("no")

    write("one")
    with pytest.raises(DataError):
        write("two", fault=True)
    assert names(tmp_path / "m") == ["one"]
    write("three")
    assert names(tmp_path / "m") == ["three"]
    assert names(tmp_path) == ["m"]


_HOLDS = """
import sys, time
from pathlib import Path
from terralign.files import atomic_folder, atomic_path
folder = Path(sys.argv[1])
with atomic_path(folder / "deep" / "a.txt") as one, atomic_folder(folder / "m") as two:
    for path in (one, two / "b"):
        path.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_only_what_killed_processes_left_is_cleared(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(tmp_path)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        clear_partials(tmp_path)
        kept = {path.name for path in tmp_path.rglob("*.partial")}
        assert kept == {f".a.txt.{child.pid}.partial", f".m.{child.pid}.partial"}
        child.kill()
    (tmp_path / "mine.partial").write_text("of another program")
    with claimed(tmp_path):
        assert [path.name for path in tmp_path.rglob("*.partial*")] == ["mine.partial"]


def test_refused_work_leaves_no_new_folder(tmp_path: Path) -> None:
    def refuse(folder: Path, *files: str) -> None:
        with claimed(folder, begins_with=("plan.toml",)):
            for name in files:
                write_text(folder / name, "text")
            raise DataError("no such data")

    with pytest.raises(DataError):
        refuse(tmp_path / "runs" / "a", "plan.toml")
    assert names(tmp_path) == []
    with pytest.raises(DataError):
        refuse(tmp_path / "runs" / "b", "plan.toml", "work/weights.pt")
    assert names(tmp_path / "runs" / "b") == [".lock", "plan.toml", "work"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError):
        refuse(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


def test_a_folder_is_waited_for_where_that_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "terralign")
    order: list[str] = []
    with ExitStack() as first:
        first.enter_context(claimed(tmp_path / "store"))
        with pytest.raises(StorageError, match=r"another process is running in .*store; wait"):
            claimed(tmp_path / "store").__enter__()

        def wait() -> None:
            with claimed(tmp_path / "store", wait=True):
                order.append("second")

        thread = threading.Thread(target=wait)
        thread.start()
        while "waiting for another process" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_waiting_can_be_interrupted(tmp_path: Path) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with open(tmp_path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                claimed(tmp_path, wait=True).__enter__()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["file", "pipe", "link", "below a file", "long"])
def test_a_place_for_no_folder_is_refused_before_the_work(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "gone")
    elif kind == "long":
        path = tmp_path / ("x" * 300)
    else:
        path.write_text("")
    with pytest.raises(StorageError, match=r"cannot write into .*; choose another folder$"):
        require_folder(path / "run" if kind == "below a file" else path)


def test_a_place_for_a_folder_may_be_missing_or_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for place in ("new", "link", "link/new/deeper"):
        require_folder(tmp_path / place)
    require_folder(Path("new"))


def test_a_pipe_is_read_to_its_end_and_without_a_writer_is_empty(tmp_path: Path) -> None:
    pipe = tmp_path / "names.txt"
    os.mkfifo(pipe)
    assert read_text(pipe) == ""
    reading, writing = os.pipe()

    def write_later() -> None:
        time.sleep(0.1)
        os.write(writing, b"forest\n")
        os.close(writing)

    writer = threading.Thread(target=write_later)
    writer.start()
    assert read_text(Path(f"/dev/fd/{reading}")) == "forest\n"
    writer.join()
    os.close(reading)


def test_a_slip_in_a_path_is_answered_with_the_name_beside_it(tmp_path: Path) -> None:
    for name in ("scenes", "B04.tif", "tiles.parquet", ".scens", "T48QUE_20200223_VV.tif"):
        (tmp_path / name).touch()
    for slip, meant in {
        "scens": "scenes",
        "SCENES": "scenes",
        "tiles": "tiles.parquet",
        "tilse.parquet": "tiles.parquet",
        "T48QUE_20200223_VV.tiff": "T48QUE_20200223_VV.tif",
    }.items():
        assert not_found(tmp_path / slip) == (
            f"{tmp_path / slip} not found (did you mean {tmp_path / meant}?)"
        )
    no_slips = (
        *("B03.tif", "T48QUE_20210223_VV.tif", "T48QUF_20200223_VV.tif", "T48QUE_20200223_VH.tif"),
        *("models", "x" * 300),
    )
    for name in no_slips:
        assert not_found(tmp_path / name) == f"{tmp_path / name} not found"


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "a.tif").touch()
    assert str(find_missing(tmp_path / "rusn" / "m" / "model")) == (
        f"there is no folder {tmp_path / 'rusn'}; did you mean {tmp_path / 'runs'}?"
    )
    assert str(find_missing(tmp_path / "other" / "m")) == f"there is no folder {tmp_path / 'other'}"
    nothing = ("/", "a\0b", "x" * 5000, "https://example.org/a.tif", "~/a.tif")
    assert [str(find_missing(one)) for one in nothing] == [""] * 5
    assert (
        str(find_missing(tmp_path / "a.tif" / "b"))
        == f"{tmp_path / 'a.tif'} is a file, not a folder"
    )
    (tmp_path / "a.json").touch()
    with pytest.raises(StorageError, match=r"a\.jsn: No such file .*did you mean .*a\.json\?"):
        read_json(tmp_path / "a.jsn", what="polygon")
    with pytest.raises(StorageError, match=r"a\.jsn: No such file or directory$"):
        read_json(tmp_path / "a.jsn")
