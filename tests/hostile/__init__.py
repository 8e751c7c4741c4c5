"""A node under hostile requests: mutated ones on every route, and valid ones that cost as much as can be found."""
