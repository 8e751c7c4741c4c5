"""What a replica node decides. Pure: no files, no network, no database."""
