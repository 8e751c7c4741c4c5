"""fedstac: validated, versioned, announced, searchable STAC for data federations."""

__version__ = "0.1.0"
