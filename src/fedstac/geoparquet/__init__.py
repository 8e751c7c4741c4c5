"""GeoParquet: what a search finds, and snapshots of a node in files. It needs the extra `parquet`."""
