"""The command line: parse, call one library function, print.

Results go to stdout, progress and logs to stderr; how it ends is in `faults.py`. torch is imported
inside the commands, once arguments and paths are checked, so that help and slips are quick.
"""

import sys

try:
    from terralign import files as files  # where the system that it runs on is checked
except ImportError as error:
    sys.exit(f"terralign: {error}")

# The modules add their commands to `main`.
from terralign.cli import ablate as ablate
from terralign.cli import bench as bench
from terralign.cli import data as data
from terralign.cli import demo as demo
from terralign.cli import imagery as imagery
from terralign.cli import index as index
from terralign.cli import models as models
from terralign.cli import runs as runs
from terralign.cli import serve as serve
from terralign.cli.app import main as main
