"""Scenes as folders of GeoParquet parts, one per scene and tower, and the search over them."""
