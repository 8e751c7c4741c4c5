"""Commands of a replica node, in the group `fedstac replica`: they work on the node's own database and folders."""
