"""fedstac measured beside stock stac-fastapi-pgstac, in one run on one machine (docs/performance.md)."""
