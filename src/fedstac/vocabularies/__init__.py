"""How a snapshot is made: what a project publishes, put together with its own cv/<project>/project.json.

`sources` reads folders and archives; `cmip6`, `cordex` and `esgvoc` understand one layout each and give `facts.Facts`;
`snapshots` makes the file of it, checks it, and keeps it beside the earlier ones; `compare` tells two apart.
"""
