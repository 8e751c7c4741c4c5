"""`fedstac vocab install`: give a node new versions while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import orjson
import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, complain, out
from fedstac.cli.vocab.snapshots import DIGEST, stop, vocabularies_in
from fedstac.domain.vocabulary import VocabularyBroken, parse
from fedstac.vocabularies import snapshots
from fedstac.vocabularies.compare import between
from fedstac.vocabularies.registry import Vocabularies, snapshot_of

commands = typer.Typer()


@commands.command(
    epilog=examples("fedstac vocab install cv/CMIP6/6.2.60.0.json", "fedstac vocab install CMIP7/*.json --dsn postgresql://…",
                    codes=True)
)  # fmt: skip
def install(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Snapshots, as `vocab import` writes them.")],
    accept_losses: Annotated[
        bool, typer.Option("--accept-losses", help="Also one that has lost half of the terms of a vocabulary.")
    ] = False,
    dsn: Annotated[str, typer.Option(help="The node's database [FEDSTAC_DSN].", show_default=False)] = "",
    output: Form = None,
) -> None:
    """Give a node new versions while it serves: they are judged with within seconds.

    Requests that were accepted keep the version they were accepted with. All are installed, or none.
    """
    form = form_of(ctx, output)
    raws = [_read(path) for path in files]
    try:
        made = [parse(raw) for raw in raws]
        held = asyncio.run(_install(dsn or environment.load().dsn, raws, accept_losses))
    except VocabularyBroken as error:
        raise stop(f"refused: {error}", terminal.REJECTED) from None
    if held:
        for sentence in held:
            complain(sentence)
        raise stop("nothing is installed; look at it with `fedstac vocab diff`, then --accept-losses",
                    terminal.REJECTED)  # fmt: skip
    rows = [{"project": one.project, "version": one.version, "digest": one.digest} for one in made]
    if form is not Output.TABLE:
        terminal.dump({"installed": rows})
    else:
        for one in made:
            out(f"installed  {one.project} {one.version}  {one.digest[:DIGEST]}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise stop(f"{path} cannot be read: {error.strerror or error}", terminal.USAGE) from None


async def _install(dsn: str, raws: Sequence[bytes], accept_losses: bool) -> list[str]:
    """Install all, with an audit row each. Return why it installed none, else nothing. VocabularyBroken refuses."""
    from fedstac.db import audit, connections
    from fedstac.db import vocabularies as kept
    from fedstac.vocabularies import store

    conn = await connections.connect(dsn, application="fedstac vocab install")
    try:
        async with conn.transaction():
            known = vocabularies_in(Path(folder) if (folder := environment.load().cv_folder) else None)
            here = {kept.SnapshotKey(one.project, one.version, one.digest) for one in known}
            for key, raw in await kept.beyond(conn, here):
                if known.find(key.project, key.version) is None:
                    known.install(snapshot_of(raw))
            held = [] if accept_losses else [loss for raw in raws for loss in _losses(known, raw)]
            for raw in raws if not held else ():
                known.install(snapshot_of(raw))  # refuses a version that is there with other content
                snapshot = await store.install(conn, raw, "operator")
                entry = audit.NewRow("operator", "vocabulary.installed", snapshot.project, snapshot.version, None,
                                    "done", None, bytes.fromhex(snapshot.digest))  # fmt: skip
                await audit.append(conn, [entry])
            return held
    finally:
        await conn.close()


def _losses(known: Vocabularies, raw: bytes) -> Iterator[str]:
    """Yield what a snapshot lacks half of that the newest one at hand has."""
    made = parse(raw)
    newest = known.of(made.project)
    if newest:
        before, after = orjson.loads(newest[-1].read()), orjson.loads(raw)
        for loss in snapshots.lost_between(before, after, between(before, after)):
            yield f"{made.project} {made.version}: {loss}"
