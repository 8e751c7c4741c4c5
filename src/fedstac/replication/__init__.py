"""A replica node's files: where they come from, how they are copied, checked and kept."""
