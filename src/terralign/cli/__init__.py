"""The command line: parse, call one library function, print.

Results go to stdout, progress and logs to stderr; how it ends is in `faults.py`. torch is imported
inside the commands, so that `--help` is quick.
"""

# The modules add their commands to `main`, in the order of its help.
from terralign.cli import runs as runs  # isort: skip
from terralign.cli import models as models  # isort: skip
from terralign.cli import imagery as imagery  # isort: skip
from terralign.cli import bench as bench  # isort: skip
from terralign.cli import ablate as ablate  # isort: skip
from terralign.cli import data as data  # isort: skip
from terralign.cli.app import main as main  # isort: skip
