"""Small sample sets, and one thread."""

from small_sets import *  # noqa: F403
