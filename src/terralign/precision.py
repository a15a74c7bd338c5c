"""The precisions that towers compute in, by name: settings are checked without torch."""

from typing import Literal, get_args

Precision = Literal["fp32", "tf32", "bf16"]
"""float32; float32 whose products CUDA rounds to TF32 (10 bits of fraction); autocast to
bfloat16."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
