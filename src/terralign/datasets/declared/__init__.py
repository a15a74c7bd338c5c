"""Data sets that their users declare in a TOML file, one module per `reader` that it may name.

`readers` opens them; `folder`, `table` and `tars` say what each kind of file may hold.
"""

from terralign.datasets.declared.readers import declared_facts as declared_facts
from terralign.datasets.declared.readers import open_declared as open_declared
from terralign.datasets.declared.readers import read_declaration as read_declaration
