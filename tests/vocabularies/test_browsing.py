"""What people see of a vocabulary: facets, terms, uses, suggestions."""

from __future__ import annotations

from fedstac.vocabularies import browsing
from fedstac.vocabularies.checker import shipped
from fedstac.vocabularies.registry import Vocabularies
from tests.support.places import REPOSITORY

_cmip6 = Vocabularies(shipped(REPOSITORY / "cv")).current("CMIP6")
assert _cmip6 is not None
CMIP6 = _cmip6


def test_a_facet_is_found_by_each_of_its_names() -> None:
    assert browsing.facet(CMIP6, "source_id") == "source_id"
    assert browsing.facet(CMIP6, "cmip6:source_id") == "source_id"
    assert browsing.facet(CMIP6, "protocol") == "protocol"
    assert browsing.facet(CMIP6, "table_variable") == "table_variable"
    assert browsing.facet(CMIP6, "NorESM2-LM") is None


def test_an_institution_is_used_by_its_models() -> None:
    [entry] = browsing.find(CMIP6, "NCC")
    assert browsing.uses(CMIP6, entry) == [
        browsing.Use("source_id", "institution_id", "source-institution",
                     ("NorCPM1", "NorESM1-F", "NorESM2-LM", "NorESM2-MM"))
    ]  # fmt: skip


def test_a_variable_is_used_by_its_tables() -> None:
    [entry] = browsing.find(CMIP6, "tas")
    [use] = browsing.uses(CMIP6, entry)
    assert use.attribute is None
    assert "Amon.tas" in use.terms
    assert all(term.endswith(".tas") for term in use.terms)


def test_a_component_is_used_by_experiments_in_two_ways() -> None:
    [entry] = browsing.find(CMIP6, "AOGCM")
    uses = browsing.uses(CMIP6, entry)
    assert {use.attribute for use in uses} == {"required_model_components", "allowed_model_components"}


def test_suggestions_are_near_by_name_or_by_title() -> None:
    experiments, models = CMIP6.terms["experiment_id"], CMIP6.terms["source_id"]
    assert browsing.suggestions(experiments, "historcal")[0][0] == "historical"
    assert browsing.suggestions(experiments, "historical") == [("historical", 100.0)]
    assert {term for term, _ in browsing.suggestions(models, "noresm", 3)} == {"NorESM1-F", "NorESM2-LM", "NorESM2-MM"}
    assert browsing.suggestions(models, "zzzzqqqq") == []
