"""Coded columns: what searches need of every dataset, as numpy arrays in memory (docs/adr/0030)."""
