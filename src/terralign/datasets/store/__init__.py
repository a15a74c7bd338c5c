"""The packed store: a data set decoded once, and read from memory-mapped files from then on.

`files` describes a store's folder, `writing` makes one and `reading` opens it.
"""

from terralign.datasets.store.files import is_store as is_store
from terralign.datasets.store.files import read_manifest as read_manifest
from terralign.datasets.store.reading import StoreSet as StoreSet
from terralign.datasets.store.verify import verify_store as verify_store
from terralign.datasets.store.writing import Packed as Packed
from terralign.datasets.store.writing import PackSettings as PackSettings
from terralign.datasets.store.writing import pack as pack
