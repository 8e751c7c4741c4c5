"""The tables of a replica node."""
