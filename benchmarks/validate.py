"""Full validations a second and core, on sample CMIP6 items; beside them what parts of it cost alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from benchmarks import report
from fedstac.demo import sample
from fedstac.domain import strict_json
from fedstac.domain.validation import COLLECTION_LINK
from fedstac.vocabularies.checker import open_checker

ITEMS = 2000
WANTED = 5000


def run(*, quick: bool, rounds: int) -> None:
    """Print the medians of the rounds. It is processor time, so that a busy machine changes little."""
    began = time.perf_counter()
    checker = open_checker()
    vocabulary = checker.vocabularies.current("CMIP6")
    report.line("validate: load schemas and vocabulary", time.perf_counter() - began, "s", detail={"wanted": "< 1"})
    items = list(sample.items(200 if quick else ITEMS))
    texts = [orjson.dumps(item) for item in items]
    served_items = [{**item, "links": [*item["links"], COLLECTION_LINK]} for item in items]
    wrong_items = [{**item, "properties": {**item["properties"], "cmip6:experiment_id": "historcal"}} for item in items]

    def full(item: Any) -> None:
        assert not checker.findings(item, "CMIP6", vocabulary)

    measurements: tuple[tuple[str, Callable[[Any], object], Sequence[Any], dict[str, object]], ...] = (
        ("validate: all rules", full, items, {"wanted": WANTED}),
        ("validate: all rules, one term wrong", lambda item: checker.findings(item, "CMIP6", vocabulary), wrong_items,
         {"what": "with the suggestion"}),
        ("limit: STAC core schema alone, jsonschema-rs", checker.core.is_valid, served_items, {}),
        ("limit: strict JSON scan alone", strict_json.parse, texts, {"what": "not in the figures above"}),
    )  # fmt: skip
    for name, work, inputs, detail in measurements:
        report.line(name, _rate(work, inputs, max(rounds, 1)), "a second and core", detail=detail)


def _rate(work: Callable[[Any], object], inputs: Sequence[Any], rounds: int) -> float:
    rates = []
    for _ in range(rounds + 1):
        began = time.process_time()
        for entry in inputs:
            work(entry)
        rates.append(len(inputs) / (time.process_time() - began))
    rates = sorted(rates[1:])  # the first warms up
    return rates[len(rates) // 2]
