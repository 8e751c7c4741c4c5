"""What a search shows of retracted datasets. Pure: every way to search asks here."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from fedstac.domain.policy import Action, Policy, Principal, Resource

ANSWERED: Final = (Action.RETRACT, Action.REINSTATE)  # who may do one of them sees the files of a retracted dataset
KEEPING: Final = (Action.MARK, Action.UNMARK, Action.DELETE)  # who may do one of them sees what is hidden
SPOKEN_OF: Final = ("retracted", "fedstac:state", "fedstac:retraction")  # properties that say whether it is retracted


class Visibility(StrEnum):
    """Which datasets a search finds, by whether they are retracted."""

    EXCLUDE = "exclude"  # those that are not retracted
    INCLUDE = "include"  # all
    ONLY = "only"  # retracted ones


def of_search(choice: Visibility | None, filtered_names: Iterable[str]) -> Visibility:
    """Return what a search finds: what it asks for, or everything that its filter lets through if that decides.

    filtered_names: the properties that its filter names.
    """
    if choice is not None:
        return choice
    speaks_of_it = any(name in SPOKEN_OF or name.startswith("fedstac:retraction.") for name in filtered_names)
    return Visibility.INCLUDE if speaks_of_it else Visibility.EXCLUDE


def may_see_files(policy: Policy, caller: Principal, resource: Resource, *, is_quarantined: bool = False) -> bool:
    """Tell whether a caller may see the files of a dataset that is retracted, or under quarantine."""
    actions = (Action.QUARANTINE,) if is_quarantined else ANSWERED
    return caller.is_admin or policy.may_one_of(caller, actions, resource)


def may_see_hidden(policy: Policy, caller: Principal | None, resource: Resource) -> bool:
    """Tell whether a caller may see a dataset that is marked for deletion, and who changed it."""
    return caller is not None and (caller.is_admin or policy.may_one_of(caller, KEEPING, resource))


def may_see_hidden_somewhere(policy: Policy, caller: Principal | None, project: str) -> bool:
    """Tell whether a caller may see what is hidden of any institution of a project."""
    return caller is not None and (caller.is_admin or policy.may_one_somewhere(caller, KEEPING, project))
