"""The dictionaries behind the codes, and what a condition is of each of their entries.

Equality with texts and truths is told here, and which rectangles a box touches. Everything else PostgreSQL tells, by
the where clause of items: an entry has the shape of one. Answers are kept, and completed when a dictionary has new
entries.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from fedstac.columns.table import Array
from fedstac.db import columns
from fedstac.db.columns import COLLECTION, FLAGS, FOOTPRINT, PLACES, TERM, Term
from fedstac.db.connections import Reader
from fedstac.domain import geometry
from fedstac.domain.errors import BadRequest
from fedstac.domain.geometry import Rectangle

UNKNOWN, TRUE, FALSE, UNDECIDED = 0, 1, 2, 3  # of an entry; UNDECIDED: the item itself has to be asked
MOST_QUESTIONS = 100_000  # entries, for each condition, that PostgreSQL is asked about for one search
MOST_COMPARISONS = 1_000_000  # of boxes with rectangles of footprints, in the event loop
MOST_KEPT_BYTES = 8 << 20  # of answers to equalities, and as many of others
LARGEST_ANSWER_PART = 4  # an answer that takes more than this part of the room is not kept
LARGEST_KEPT = 8 << 10  # bytes of a condition whose answer is kept
ANSWER_BYTES = 200  # that an answer takes beside its states
LOST, ABSENT = -1, -2  # places of a property in a collection: rows have no codes of it; no dataset has it
TEXT, BOOLEAN, OTHER = 1, 2, 4  # types of members, as bits

Place = tuple[str, str]  # of a dictionary: TERM and a property, or FOOTPRINT, COLLECTION or a flag, and ""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A condition on the entries of one dictionary; `text` is it in JSON."""

    place: Place
    text: bytes

    @property
    def expression(self) -> Any:
        return orjson.loads(self.text)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a condition is of each code: a table whose last entry, UNDECIDED, stands for all other codes."""

    table: Array
    entries: int  # of the dictionary, when it was asked
    true_codes: Array


class Dictionary:
    """The codes of one dictionary in the order in which they came, and for terms the values behind them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.codes: list[int] = []
        self.values: dict[int, Any] = {}  # of terms, by code
        self._code_set: set[int] = set()
        self._members: defaultdict[Any, list[int]] = defaultdict(list)  # places of those that have a member
        self._types: list[int] = []  # bits of the members of each; -1 where there is no value
        self._types_of_all: Array = np.zeros(0, np.int8)  # the same, as of the last question
        self._codes_of_all: Array = np.zeros(0, np.int64)  # `codes`, as of the last question
        if place[0] in (TERM, FOOTPRINT):
            self.add(0, None)
        elif place[0] in FLAGS:
            self.add(0, False)
            self.add(1, True)

    def __len__(self) -> int:
        return len(self.codes)

    def __contains__(self, code: int) -> bool:
        return code in self._code_set

    def add(self, code: int, value: Any) -> None:
        """Add an entry, once."""
        if code in self._code_set:
            return
        self._code_set.add(code)
        place = len(self.codes)
        self.codes.append(code)
        if value is None:
            self._types.append(-1)
            return
        if self.place[0] == TERM:
            self.values[code] = value
        members = value if isinstance(value, list) else [value]
        self._types.append(sum({_type(member) for member in members if member is not None}))
        for member in members:
            if isinstance(member, str | bool):
                places = self._members[_type(member), member]
                if not places or places[-1] != place:
                    places.append(place)

    def equality(self, choices: Sequence[Any]) -> Array | None:
        """Return what "is one of these" is of each entry; None where PostgreSQL has to say.

        An entry is true by one member. Else a member of another type than a choice makes it unknown.
        """
        types_of_choices = {_type(choice) for choice in choices}
        if OTHER in types_of_choices or self.place[0] == FOOTPRINT:
            return None
        if len(self._types_of_all) < len(self._types):
            self._types_of_all = np.array(self._types, np.int8)
        types = self._types_of_all
        comparable = next(iter(types_of_choices)) if len(types_of_choices) == 1 else 0
        states = np.where((types >= 0) & ((types & ~comparable) == 0), FALSE, UNKNOWN).astype(np.uint8)
        for choice in choices:
            states[self._members.get((_type(choice), choice), [])] = TRUE
        return states

    def verdicts(self, states: Array) -> Verdicts:
        """Return a table by code."""
        codes = self.codes_of_all()[: len(states)]
        table = np.full(int(codes.max(initial=0)) + 2, UNDECIDED, np.uint8)
        table[codes] = states
        return Verdicts(table, len(states), codes[states == TRUE].astype(np.int32))

    def codes_of_all(self) -> Array:
        """Return the code of each entry."""
        if len(self._codes_of_all) < len(self.codes):
            self._codes_of_all = np.array(self.codes, np.int64)
        return self._codes_of_all


class RectangleIndex:
    """The footprints that consist of rectangles, or of nothing, by their places in the dictionary of footprints."""

    def __init__(self) -> None:
        self._known_places: list[int] = []
        self._pairs: list[tuple[int, Rectangle]] = []
        self._are_known: Array = np.zeros(0, np.bool_)  # of each entry, as of the last question
        self._places: Array = np.zeros(0, np.int64)  # of each pair, likewise
        self._corners: Array = np.zeros((4, 0))  # west, south, east and north of each pair

    @property
    def count(self) -> int:
        return len(self._pairs)

    def add(self, place: int, rectangles: Iterable[Rectangle]) -> None:
        """Add a footprint that consists of these rectangles."""
        self._known_places.append(place)
        self._pairs += [(place, rectangle) for rectangle in rectangles]

    def touches(self, boxes: Iterable[Rectangle], entries: int) -> Array:
        """Return whether each of so many footprints shares a point with one of the boxes.

        The first one, of an item without a geometry, is unknown. UNDECIDED stands for what is no rectangle.
        """
        if len(self._places) < len(self._pairs):
            self._places = np.array([place for place, _ in self._pairs], np.int64)
            self._corners = np.array([rectangle for _, rectangle in self._pairs]).T.copy()
        if len(self._are_known) < entries:
            self._are_known = np.isin(np.arange(entries), self._known_places)
        states = np.where(self._are_known, FALSE, UNDECIDED).astype(np.uint8)
        states[0] = UNKNOWN
        west, south, east, north = self._corners
        for own_west, own_south, own_east, own_north in boxes:
            touching = (west <= own_east) & (east >= own_west) & (south <= own_north) & (north >= own_south)
            states[self._places[touching]] = TRUE
        return states


class _AnswerStore:
    """Answers by condition, those that were used last, in at most MOST_KEPT_BYTES."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Leaf, Verdicts] = OrderedDict()
        self.bytes = 0

    def find(self, leaf: Leaf) -> Verdicts | None:
        answer = self._answers.get(leaf)
        if answer is not None:
            self._answers.move_to_end(leaf)
        return answer

    def keep(self, leaf: Leaf, answer: Verdicts) -> None:
        self._drop(leaf)
        size = _size(leaf, answer)
        if size * LARGEST_ANSWER_PART > MOST_KEPT_BYTES:
            return
        self._answers[leaf] = answer
        self.bytes += size
        while self.bytes > MOST_KEPT_BYTES:
            self._drop(next(iter(self._answers)))

    def _drop(self, leaf: Leaf) -> None:
        answer = self._answers.pop(leaf, None)
        if answer is not None:
            self.bytes -= _size(leaf, answer)


WITHOUT_TERMS = Dictionary((TERM, ""))


def _type(value: Any) -> int:
    return TEXT if isinstance(value, str) else BOOLEAN if isinstance(value, bool) else OTHER


class Dictionaries:
    """All dictionaries, the collections, which place of a row holds which property, and answers that are kept."""

    def __init__(self) -> None:
        self._by_place: dict[Place, Dictionary] = {}
        self._codes: set[int] = {0}  # of all terms
        self.collections: dict[str, int] = {}
        self.full: frozenset[int] = frozenset()  # keys of collections without a free place
        self.slots: dict[str, dict[int, int]] = {}  # by property: the place in the rows of each collection, by its key
        self._rectangles = RectangleIndex()
        self._equalities = _AnswerStore()  # found here, at once
        self._others = _AnswerStore()  # some cost a question to PostgreSQL: equalities do not displace them
        self._ranks: dict[str, tuple[int, Array]] = {}  # by property: of how many entries, and by code

    def of(self, place: Place) -> Dictionary:
        """Return a dictionary; one without terms where a property, whose name a caller may have made up, has none."""
        dictionary = self._by_place.get(place)
        if dictionary is None:
            dictionary = WITHOUT_TERMS if place[0] == TERM else self._new(place)
        return dictionary

    def _new(self, place: Place) -> Dictionary:
        return self._by_place.setdefault(place, Dictionary(place))

    @property
    def answer_bytes(self) -> int:
        """Return how many bytes the answers take that are kept."""
        return self._equalities.bytes + self._others.bytes

    def values_of(self, name: str) -> Mapping[int, Any]:
        """Return the values of a property by their codes."""
        return self.of((TERM, name)).values

    @property
    def term_count(self) -> int:
        return len(self._codes) - 1

    def missing_terms(self, codes: Iterable[int]) -> list[int]:
        """Return those of the codes whose terms are not here."""
        return [code for code in codes if code > 0 and code not in self._codes]

    def add_terms(self, terms: Iterable[Term]) -> None:
        for term in terms:
            self._codes.add(term.code)
            place = TERM, term.property
            dictionary = self._by_place[place] if place in self._by_place else self._new(place)
            dictionary.add(term.code, orjson.loads(term.value))

    def missing_footprints(self, codes: Iterable[int]) -> list[int]:
        """Return those of the codes whose footprints are not here."""
        footprints = self.of((FOOTPRINT, ""))
        return [code for code in codes if code > 0 and code not in footprints]

    def add_footprints(self, codes: Iterable[int], rectangles: Mapping[int, Sequence[Rectangle]]) -> None:
        """Add footprints that are missing, with the rectangles of those that consist of some."""
        footprints = self.of((FOOTPRINT, ""))
        for code in codes:
            if code in rectangles:
                self._rectangles.add(len(footprints), rectangles[code])
            footprints.add(code, None)

    def place_collections(self, keys: Mapping[str, int], slots: Sequence[tuple[str, str, int]]) -> None:
        """Take up which collections there are, and what their rows hold where."""
        self.collections = dict(keys)
        entries = self.of((COLLECTION, ""))
        for name, key in keys.items():
            entries.add(key, name)
        places: dict[str, dict[int, int]] = {}
        for collection, name, place in slots:
            if collection in keys:
                places.setdefault(name, {})[keys[collection]] = place
        self.slots = places
        counts = Counter(keys[collection] for collection, _, _ in slots if collection in keys)
        self.full = frozenset(key for key, count in counts.items() if count >= PLACES)

    def place(self, name: str, collection: int) -> int:
        """Return the place of a property in the rows of a collection, by its key; LOST or ABSENT without one.

        Where all places are taken, datasets may have properties that have none.
        """
        return self.slots.get(name, {}).get(collection, LOST if collection in self.full else ABSENT)

    # --- conditions ---

    async def verdicts(self, conn: Reader, leaves: Iterable[Leaf]) -> dict[Leaf, Verdicts]:
        """Return what conditions are of the entries of their dictionaries; without those that cannot be told."""
        answers: dict[Leaf, Verdicts] = {}
        # by dictionary and the places of entries that PostgreSQL has to tell of, with what is known of all entries
        questions: defaultdict[tuple[Place, bytes], list[tuple[Leaf, Array]]] = defaultdict(list)
        for leaf in leaves:
            answer, entries = self._others.find(leaf) or self._equalities.find(leaf), len(self.of(leaf.place))
            if answer is not None and answer.entries == entries:
                answers[leaf] = answer
                continue
            expression = leaf.expression
            states = _equality(self.of(leaf.place), expression)
            if states is not None:
                answers[leaf] = self._keep(leaf, states, self._equalities)
                continue
            states = self._states(leaf.place, expression, answer)
            places = np.flatnonzero(states == UNDECIDED)
            if len(places):
                questions[leaf.place, places.tobytes()].append((leaf, states))
            else:
                answers[leaf] = self._keep(leaf, states, self._others)
        allowance = MOST_QUESTIONS
        for (place, buffer), group in questions.items():
            places = np.frombuffer(buffer, np.int64)
            codes = self.of(place).codes_of_all()[places].tolist()
            allowance -= len(codes) * len(group)
            if allowance < 0:
                continue
            try:
                truths = await columns.truths(conn, place, [leaf.expression for leaf, _ in group], codes)
            except BadRequest:  # an entry with which it cannot be evaluated, maybe of no item that is searched
                continue
            for at, (leaf, states) in enumerate(group):
                states[places] = [_state(truths.get(code), at) for code in codes]
                answers[leaf] = self._keep(leaf, states, self._others)
        return answers

    def _states(self, place: Place, expression: Any, answer: Verdicts | None) -> Array:
        """Return what a condition is of each entry, as far as it is known here or was told before."""
        dictionary = self.of(place)
        boxes = _boxes(expression) if place[0] == FOOTPRINT else ()
        if 0 < len(boxes) * self._rectangles.count <= MOST_COMPARISONS:
            states = self._rectangles.touches(boxes, len(dictionary))
        else:
            states = np.full(len(dictionary), UNDECIDED, np.uint8)
        if answer is not None:
            before = answer.table[dictionary.codes_of_all()[: answer.entries]]
            unknown = np.flatnonzero(states[: answer.entries] == UNDECIDED)
            states[unknown] = before[unknown]
        return states

    def _keep(self, leaf: Leaf, states: Array, store: _AnswerStore) -> Verdicts:
        """Return an answer, and keep it as long as there is room."""
        answer = self.of(leaf.place).verdicts(states)
        if len(leaf.text) <= LARGEST_KEPT:
            store.keep(leaf, answer)
        return answer

    # --- orders ---

    def newest(self, name: str) -> int:
        """Return a number that grows whenever a property has another value: ranks from before lack that one."""
        return max(self.collections.values(), default=0) if name == COLLECTION else len(self.of((TERM, name)))

    async def ranks(self, conn: Reader, name: str) -> Array:
        """Return the place of each code of a property in the order of its values; null after all others."""
        if name == COLLECTION:
            keys = [key for _, key in sorted(self.collections.items())]
            return _by_code(keys, range(1, len(keys) + 1))
        terms = self.of((TERM, name))
        entries, ranks = self._ranks.get(name, (0, None))
        if ranks is None or entries < len(terms):
            entries = len(terms)
            of_codes = await columns.ranks(conn, name, list(terms.codes)) if terms is not WITHOUT_TERMS else {}
            ranks = _by_code(of_codes, (NULL if rank is None else rank for rank in of_codes.values()))
            if terms is not WITHOUT_TERMS:
                self._ranks[name] = entries, ranks
        return ranks


def _equality(dictionary: Dictionary, expression: Any) -> Array | None:
    """Return what an equality is of each entry; None for other conditions, and where PostgreSQL has to say."""
    if expression["op"] not in ("=", "in"):
        return None
    own, other = expression["args"]
    if expression["op"] == "=" and not isinstance(own, dict):
        own, other = other, own
    if set(own) != {"property"} or isinstance(other, dict):
        return None
    return dictionary.equality(other if expression["op"] == "in" else [other])


def _boxes(expression: Any) -> Sequence[Rectangle]:
    """Return the rectangles that a condition asks for with s_intersects; nothing for other conditions and shapes."""
    match expression:
        case {"op": "s_intersects", "args": [{"property": "geometry"}, {"type": _} as shape]}:
            return geometry.rectangles(shape)
    return ()


NULL = np.iinfo(np.int64).max  # the rank of what is missing: after all others


def _by_code(codes: Iterable[int], ranks: Iterable[int]) -> Array:
    """Return ranks by code; of code 0, of what has none, and at the end, that of null."""
    pairs = list(zip(codes, ranks, strict=True))
    table = np.full(max((code for code, _ in pairs), default=0) + 2, NULL, np.int64)
    for code, rank in pairs:
        table[code] = rank
    table[0] = NULL
    return table


def _size(leaf: Leaf, answer: Verdicts) -> int:
    return len(leaf.text) + answer.table.nbytes + answer.true_codes.nbytes + ANSWER_BYTES


def _state(truths: Sequence[bool | None] | None, at: int) -> int:
    if truths is None:  # an entry that is not there any more
        return UNDECIDED
    return UNKNOWN if truths[at] is None else TRUE if truths[at] else FALSE
