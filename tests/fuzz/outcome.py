"""One case in a child process: limited, watched, and judged by how it ended."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralign.errors import TerralignError

if TYPE_CHECKING:
    from fuzz.corpus import Entry

CPU_S = 20
GROWTH_MB = 1500
ROOM_MB = 4000
"""Address space that a case may take beyond what its process has."""
WALL_S = 240
LINE = 2000
"""Characters of a message."""

GOOD = ("read", "told")
"""How a case may end; every other kind is a failure."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a case ended: `kind`, the message or fault, what was done to the files, and its cost."""

    case: str
    entry: str
    part: str
    kind: str
    text: str
    done: tuple[str, ...]
    cpu_s: float
    growth_mb: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_case(
    case: str, entry: Entry, template: Path, place: Path, damage: Callable[[Path], Sequence[str]]
) -> Outcome:
    """Copy `template` into `place`, damage it and read it, all in a child process."""
    place.mkdir(parents=True)
    (place / "victim").write_text("untouched")
    shutil.copytree(template, place / "files", symlinks=True)
    (place / "tmp").mkdir()
    child = os.fork()
    if child == 0:
        try:
            _child(entry, place, damage)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(0)
    _, status, usage = os.wait4(child, 0)
    cpu_s = usage.ru_utime + usage.ru_stime
    done = tuple(_lines(place / "done"))
    result = "".join(_lines(place / "result"))
    found = json.loads(result) if result else None  # a child that was killed wrote none
    kind, text, growth_mb = _judge(found, status, place, entry, done)
    if kind in GOOD and cpu_s > CPU_S:
        kind = "cpu"
    return Outcome(
        case=case, entry=entry.name, part=entry.part, kind=kind, text=text.replace(str(place), ""),
        done=done, cpu_s=round(cpu_s, 2), growth_mb=growth_mb,
    )  # fmt: skip


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


# In the child


def _child(entry: Entry, place: Path, damage: Callable[[Path], Sequence[str]]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(place / "files")
    tempfile.tempdir = os.environ["TMPDIR"] = str(place / "tmp")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    done = damage(place / "files")
    if entry.sealed is not None:
        entry.sealed(place / "files")
    (place / "done").write_text("\n".join(done), errors="backslashreplace")
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(place / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.resetwarnings()
    warnings.simplefilter("always")
    for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", quiet)
    warnings.filterwarnings("ignore", module="PIL")  # Python shows them to callers from Python
    sys.unraisablehook = lambda fault: (
        None if str(fault.object).startswith("rasterio.") else sys.__unraisablehook__(fault)
    )
    result = open(place / "result", "w")  # noqa: SIM115
    sink: list[str] = []
    start_mb = _memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the highest resident set counts from now
    room = (_memory("VmSize") + ROOM_MB) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limit = int(used + CPU_S + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    sys.addaudithook(_hook(place, sink))
    kind, text, where = "read", "", ""
    try:
        entry.read(place / "files")
    except TerralignError as error:
        kind, text = "told", str(error)
    except SystemExit as end:
        kind, text = "exit", str(end.code)
    except BaseException as error:
        kind = "unexpected"
        where = _where(error)
        text = f"{type(error).__name__}: {str(error)[:300]}"
    growth = _memory("VmHWM") - start_mb
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
    sys.stdout.flush()
    sys.stderr.flush()
    values = {"kind": kind, "text": text, "where": where, "growth_mb": growth, "sink": sink[:5]}
    result.write(json.dumps(values))
    result.close()


def _where(error: BaseException) -> str:
    """The last places of the library in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f"{one.filename.partition('terralign/')[2]}:{one.lineno}"
        for one in frames
        if "/terralign/" in one.filename
    ]
    return " < ".join(reversed(ours[-3:]))


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        return int(re.findall(rf"{name}:\s+(\d+)", file.read())[0]) // 1024


_PLACES = {
    "os.remove": (0,), "os.rename": (0, 1), "os.rmdir": (0,), "os.mkdir": (0,), "os.link": (1,),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "shutil.rmtree": (0,),
    "shutil.move": (0, 1), "shutil.copyfile": (1,),
}  # fmt: skip
_RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty",
         "pty.spawn", "os.spawn", "marshal.loads", "socket.connect")  # fmt: skip
_CLASSES = ("numpy", "torch", "collections", "_codecs", "terralign", "builtins.getattr")


def _hook(place: Path, sink: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """Notes what runs code, or writes outside of the case's folder."""
    base = str(place)

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # an open file
        whole = os.path.abspath(os.fsdecode(path))
        real = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
        return not real.startswith((base, "/dev/null")) and "__pycache__" not in real

    def watch(event: str, given: tuple[Any, ...]) -> None:
        try:
            if event == "open":
                path, _, flags = given
                writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                if writes and outside(path):
                    sink.append(f"outside: open {path!r}")
                elif writes and not flags & os.O_NOFOLLOW and os.path.islink(path):
                    sink.append(f"outside: open of a link {path!r}")
            elif event in _PLACES:
                for number in _PLACES[event]:
                    if outside(given[number]):
                        sink.append(f"outside: {event} {given[number]!r}")
            elif (event in _RUNS and not _importing()) or (
                event == "pickle.find_class" and not str(given[0]).startswith(_CLASSES)
            ):
                sink.append(f"executed: {event} {given!r:.200}")
        except Exception as error:
            sink.append(f"outside: {event}: the watch itself failed: {error!r}")

    return watch


def _importing() -> bool:
    """Whether a module is being imported, which loads and runs its code."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


# In the parent

_FROM_C = re.compile(r"^Error: Key .* of TIFFTagLocation.*$", re.MULTILINE)
"""What libgeotiff, of which JPEG 2000 files hold one, prints past GDAL."""

_NOISE = re.compile(r"Traceback|Warning[: ]|warning:|ERROR|Exception ignored|^libpng|^_?TIFF", re.M)


def _judge(
    found: dict[str, Any] | None, status: int, place: Path, entry: Entry, done: Sequence[str]
) -> tuple[str, str, int]:
    """The kind of outcome, what to show of it, and the growth of memory in MB."""
    if (place / "victim").read_text() != "untouched" or set(os.listdir(place)) - {
        "victim", "files", "tmp", "done", "result", "stdout", "stderr",
    }:  # fmt: skip
        return "outside", f"a file outside the folder was written: {os.listdir(place)}", 0
    stderr = (place / "stderr").read_text(errors="replace") if (place / "stderr").exists() else ""
    if found is None or os.WIFSIGNALED(status):
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        kind = {signal.SIGXCPU: "cpu", signal.SIGALRM: "hung"}.get(number, "killed")  # type: ignore[call-overload]
        return kind, f"signal {number} {stderr[-300:]}", 0
    kind, text, growth = found["kind"], found["text"], found["growth_mb"]
    for noted in found["sink"]:
        return noted.partition(":")[0], noted, growth
    if growth > GROWTH_MB:
        return "memory", f"{growth} MB; {kind} {text[:300]}", growth
    if kind == "unexpected":
        return kind, f"{text} ({found['where']})", growth
    whole = text
    if kind == "exit":
        said = (place / "stdout").read_text(errors="replace")
        lines = stderr.strip().splitlines() or said.strip().splitlines() or [""]
        if text not in ("0", "1", "2"):
            return "unexpected", f"exit {text}: {lines[-1][:300]}", growth
        kind, text = "told", lines[-1]
        if "unexpected" in text:
            return "unexpected", text[:400], growth
        whole, stderr = f"{said} {stderr}", "\n".join(lines[:-1])
    if _NOISE.search(_FROM_C.sub("", stderr)):
        return "noise", stderr[:400], growth
    if kind == "read":
        return kind, "", growth
    if len(text.splitlines()) != 1 or not text.isprintable():
        return "lines", repr(text[:400]), growth
    if len(text) > LINE:
        return "long", f"{len(text)} characters: {text[:200]}", growth
    if not _names_it(whole, place, entry, done):
        return "nameless", text[:400], growth
    return kind, text, growth


def _names_it(text: str, place: Path, entry: Entry, done: Sequence[str]) -> bool:
    """Whether a message says what it is about: the folder, or a part of the damaged file's path."""
    parts = {part for one in done for part in Path(one.partition(": ")[0]).parts}
    names = {str(place), entry.name, *parts, *(Path(one).stem for one in parts)}
    return any(len(one) > 1 and one in text for one in names)
