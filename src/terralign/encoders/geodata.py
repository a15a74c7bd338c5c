"""Results as a geopandas `GeoDataFrame`, which is optional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from terralign.errors import DataError

if TYPE_CHECKING:
    import geopandas

CRS = "EPSG:4326"


def geodataframe(
    rows: Sequence[Mapping[str, Any]], shapes: Sequence[Any], columns: Sequence[str]
) -> geopandas.GeoDataFrame:
    """One row for each mapping, with its shape (shapely, degrees; None for an unknown place).

    `columns`: those of a frame without rows. `DataError` where geopandas is not installed.
    """
    try:
        import geopandas
    except ImportError as error:
        raise DataError(
            "to_geodataframe needs geopandas: pip install 'terralign[geopandas]'; save_geojson "
            "and save need no more than is installed"
        ) from error
    names = list(rows[0]) if rows else list(columns)
    data = {name: [row.get(name) for row in rows] for name in names}
    return geopandas.GeoDataFrame(data, geometry=list(shapes), crs=CRS)
