"""The built-in synthetic world, which needs no files: `synthetic-photos` and `synthetic-scenes`."""

from terralign.datasets.synthetic.sets import SyntheticSet as SyntheticSet
from terralign.datasets.synthetic.sets import open_synthetic_photos as open_synthetic_photos
from terralign.datasets.synthetic.sets import open_synthetic_scenes as open_synthetic_scenes
