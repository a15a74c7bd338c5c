"""Small sample sets, and one thread."""

from small_sets import (  # noqa: F401
    many_label_task,
    many_label_val,
    many_labels,
    one_thread,
    photos,
    scenes,
    scenes_val,
    supported,
    task,
    validation,
)
