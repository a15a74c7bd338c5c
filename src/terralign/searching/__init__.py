"""What is done with a search of an index: measured against polygons, or written as a page."""
