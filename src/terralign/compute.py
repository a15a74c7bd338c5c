"""What torch computes with: threads (chosen once per run, recorded, used again), device and
precision."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from threadpoolctl import ThreadpoolController

from terralign.cores import available_cores
from terralign.errors import RecipeError, first_line
from terralign.launch import place
from terralign.precision import Precision

logger = logging.getLogger(__name__)

MAX_READERS = 16
"""Threads that read for one device: beyond, the interpreter's lock is what they wait for."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt."""


def choose_threads(requested: int | None = None) -> int:
    """The number to compute with: `requested`, else OMP_NUM_THREADS, else all cores but one.

    The core left over reads and prepares the next batches. Torch's intra-op threads wait for one
    another at every operation: with as many threads as cores, anything else that runs on the
    machine stalls them all (measured here on two cores: 5 to 14 times slower than one thread).
    """
    if requested is not None:
        return max(1, requested)
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, available_cores() - 1)


def num_readers(device: torch.device) -> int:
    """Threads that read batches: one beside a CPU's own work, all cores but one for a GPU."""
    return 1 if device.type == "cpu" else max(1, min(MAX_READERS, available_cores() - 1))


def compute_alone() -> None:
    """Let torch compute with one thread in the calling thread, whatever it uses in others.

    Readers call it: else each would start as many intra-op threads as the model computes with.
    """
    torch.get_num_threads()  # which makes torch set this thread's number, once
    _thread_pools().limit(limits=1, user_api="openmp")


@functools.cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


def keep_freed_memory() -> None:
    """Let glibc keep the memory that tensors free, for the next ones; elsewhere nothing happens.

    By default it gives every large piece back to the system and asks for it again, page by page, at
    each step: measured on CPU, 12 to 20 % of a run's time (docs/benchmarks.md). There is a heap for
    each core, so that a reader does not wait for the model's, nor the model for a reader's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for size in (1 << 30, 1 << 25):  # some versions refuse a threshold above 32 MiB
        if mallopt(_M_MMAP_THRESHOLD, size):
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
            mallopt(_M_ARENA_MAX, available_cores())
            return


def set_threads(num_threads: int) -> None:
    """Compute with this many intra-op threads from now on."""
    keep_freed_memory()
    torch.set_num_threads(num_threads)
    plural = "" if num_threads == 1 else "s"
    logger.debug("computing with %d thread%s; one more reads ahead", num_threads, plural)


def choose_device(requested: str | None = None) -> str:
    """`requested`, checked, else CUDA if available, else the CPU.

    Of several processes each takes the CUDA device of its local rank.
    """
    here = place()
    if requested is None and not torch.cuda.is_available():
        return "cpu"
    if here.size > 1 and requested in (None, "cuda"):
        requested = f"cuda:{here.local_rank}"
    elif here.size > 1 and requested is not None and requested.startswith("cuda:"):
        raise RecipeError(
            f"device {requested!r} is a single one for {here.size} processes; give cuda, of which "
            "each takes its own, or cpu"
        )
    if requested is None:
        return "cuda"
    check_device(requested)
    return requested


def check_device(device: object) -> None:
    """`RecipeError` unless numbers can be computed on a device, which is not so of "meta"."""
    try:
        if not isinstance(device, str | int | torch.device):
            raise TypeError(f"it is a {type(device).__name__}")
        torch.empty(1, device=device).fill_(1).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise RecipeError(
            f"cannot compute on device {str(device)!r} ({first_line(error)}); try cpu, cuda or "
            "cuda:1"
        ) from error


@contextmanager
def as_usual(device: torch.device | None = None) -> Iterator[None]:
    """Torch's own defaults within the block, where modules are made and trained: float32, on the
    CPU. Afterwards the caller's defaults and random numbers (of a CUDA `device` too) are as before.
    """
    dtype, on_cpu = torch.get_default_dtype(), torch.get_default_device().type == "cpu"
    cuda = [device] if device is not None and device.type == "cuda" else []
    try:
        torch.set_default_dtype(torch.float32)
        with torch.random.fork_rng(devices=cuda), nullcontext() if on_cpu else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


class _Chosen:
    """How towers that are not trained compute, in this process."""

    inference: Precision = "fp32"


def choose_inference(precision: Precision) -> None:
    """How towers that are not trained compute from now on: teachers, sweeps, embeddings."""
    _Chosen.inference = precision


def inference_depends() -> dict[str, str]:
    """What embeddings depend on beside weights and pixels: nothing in float32."""
    return {} if _Chosen.inference == "fp32" else {"precision": _Chosen.inference}


@contextmanager
def inferring(device: torch.device) -> Iterator[None]:
    """No gradients, and the precision that `choose_inference` set."""
    with torch.inference_mode(), in_precision(_Chosen.inference, device):
        yield


@contextmanager
def in_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in a precision within the block, whatever is set around it.

    A backward pass belongs into `products_in` alone: autocast is part of what it goes back over.
    """
    with (
        products_in(precision),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """CUDA's products of float32 numbers in TF32 within the block, or not."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def computing(*, inference: Precision, deterministic: bool) -> Iterator[None]:
    """A run's way of computing within the block: see `choose_inference`; `deterministic`: CUDA
    gives the same bits each time, and operations that cannot raise `RecipeError`."""
    before = _Chosen.inference, torch.are_deterministic_algorithms_enabled()
    choose_inference(inference)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if deterministic and "deterministic" in str(error):
            raise RecipeError(
                f"deterministic = true: {first_line(error)}; leave it out, or start a new process"
            ) from error
        raise
    finally:
        choose_inference(before[0])
        torch.use_deterministic_algorithms(before[1])
