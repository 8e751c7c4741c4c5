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
        vocabularies = [parse(raw) for raw in raws]
        losses = asyncio.run(_install(dsn or environment.load().dsn, raws, accept_losses))
    except VocabularyBroken as error:
        raise stop(f"refused: {error}", terminal.REJECTED) from None
    if losses:
        for sentence in losses:
            complain(sentence)
        raise stop("nothing is installed; look at it with `fedstac vocab diff`, then --accept-losses",
                    terminal.REJECTED)  # fmt: skip
    rows = [{"project": one.project, "version": one.version, "digest": one.digest} for one in vocabularies]
    if form is not Output.TABLE:
        terminal.dump({"installed": rows})
    else:
        for one in vocabularies:
            out(f"installed  {one.project} {one.version}  {one.digest[:DIGEST]}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise stop(f"{path} cannot be read: {error.strerror or error}", terminal.USAGE) from None


async def _install(dsn: str, raws: Sequence[bytes], accept_losses: bool) -> list[str]:
    """Install all, with an audit row each. Return the losses for which none was installed.

    VocabularyBroken for content that cannot be used.
    """
    from fedstac.db import audit, opening
    from fedstac.db import vocabularies as kept
    from fedstac.vocabularies import store

    conn = await opening.connect(dsn, application="fedstac vocab install")
    try:
        async with conn.transaction():
            vocabularies = vocabularies_in(Path(folder) if (folder := environment.load().cv_folder) else None)
            here = {kept.SnapshotKey(one.project, one.version, one.digest) for one in vocabularies}
            for key, raw in await kept.beyond(conn, here):
                if vocabularies.find(key.project, key.version) is None:
                    vocabularies.install(snapshot_of(raw))
            losses = [] if accept_losses else [loss for raw in raws for loss in _losses(vocabularies, raw)]
            for raw in raws if not losses else ():
                vocabularies.install(snapshot_of(raw))  # refuses a version that is there with other content
                snapshot = await store.install(conn, raw, "operator")
                entry = audit.NewRow("operator", "vocabulary.installed", snapshot.project, snapshot.version, None,
                                    "done", None, bytes.fromhex(snapshot.digest))  # fmt: skip
                await audit.append(conn, [entry])
            return losses
    finally:
        await conn.close()


def _losses(vocabularies: Vocabularies, raw: bytes) -> Iterator[str]:
    """Yield the vocabularies of the newest snapshot of which a new one lacks half of the terms."""
    vocabulary = parse(raw)
    newest = vocabularies.of(vocabulary.project)
    if newest:
        before, after = orjson.loads(newest[-1].read()), orjson.loads(raw)
        for loss in snapshots.lost_between(before, after, between(before, after)):
            yield f"{vocabulary.project} {vocabulary.version}: {loss}"
