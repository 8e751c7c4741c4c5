"""The snapshots that a command of `fedstac vocab` works on: the options that name them, and how they are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.terminal import complain
from fedstac.domain.vocabulary import UnknownVersion, Vocabulary, VocabularyBroken
from fedstac.vocabularies.checker import shipped
from fedstac.vocabularies.registry import Vocabularies

DIGEST = 12  # digits of a digest that people see
Folder = Annotated[Path | None, typer.Option("--cv-folder", help="Folder of snapshots; else the installed ones.")]
Project = Annotated[str, typer.Argument(help="A project, such as CMIP6.")]
Version = Annotated[str, typer.Option("--version", help="Version of the vocabulary; else the newest.")]


def vocabularies_in(folder: Path | None) -> Vocabularies:
    """Return the vocabularies of a folder, or those that ship with fedstac."""
    return Vocabularies(shipped(folder or environment.folder("cv")))


def vocabulary_of(folder: Path | None, project: str, version: str = "") -> Vocabulary:
    """Return one version of a project's vocabulary, or its newest. Exit with 3 if there is none."""
    vocabularies = vocabularies_in(folder)
    try:
        vocabulary = vocabularies.at(project, version) if version else vocabularies.current(project)
    except (UnknownVersion, VocabularyBroken) as error:
        raise stop(f"{error}; `fedstac vocab list` shows what there is", terminal.NOT_FOUND) from None
    if vocabulary is None:
        raise stop(f"no project {project!r}; there is: {', '.join(vocabularies.projects())}", terminal.NOT_FOUND)
    return vocabulary


def number_of_terms(vocabulary: Vocabulary) -> int:
    """Return how many terms a project's vocabulary has in all."""
    return sum(map(len, vocabulary.terms.values()))


def stop(sentence: str, code: int) -> typer.Exit:
    """Print an error and return the exit that the caller raises."""
    complain(sentence)
    return typer.Exit(code)
