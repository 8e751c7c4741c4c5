"""Real dataset names: exactly those that contradict the vocabulary are refused, each by the right rule."""

from __future__ import annotations

import gzip

import orjson
import pytest

from fedstac.domain.errors import Severity
from fedstac.vocabularies.checker import open_checker
from tests.support.places import SHARED

# Published in the real archive, and contradicting CMIP6_CVs 6.2.60.0: the rule, and what is at fault.
CONTRADICTIONS = {
    # a model that was never registered: CMCC-ESM2-SR5
    "CMIP6.LS3MIP.CMCC.CMCC-ESM2-SR5.land-hist.r1i1p1f1.LImon.snm.gn.v20190930": {"term"},
    "CMIP6.LUMIP.CMCC.CMCC-ESM2-SR5.land-cClim.r1i1p1f1.fx.areacellr.gn.v20191231": {"term"},
    "CMIP6.LUMIP.CMCC.CMCC-ESM2-SR5.land-hist-altStartYear.r1i1p1f1.Lmon.grassFrac.gn.v20191217": {"term"},
    "CMIP6.LUMIP.CMCC.CMCC-ESM2-SR5.land-noLu.r1i1p1f1.Amon.rlus.gn.v20191105": {"term"},
    "CMIP6.LUMIP.CMCC.CMCC-ESM2-SR5.land-noLu.r1i1p1f1.fx.sftgif.gn.v20191105": {"term"},
    # a model that does not take part in the activity
    "CMIP6.CMIP.IPSL.IPSL-CM5A2-INCA.abrupt-4xCO2.r1i1p1f1.Omon.rsntds.gn.v20201218": {"source-activity"},
    "CMIP6.RFMIP.MPI-M.MPI-ESM1-2-HR.piClim-control.r1i1p1f1.Emon.netAtmosLandCO2Flux.gn.v20190710": {
        "source-activity"
    },
    "CMIP6.RFMIP.MPI-M.MPI-ESM1-2-HR.piClim-control.r1i1p1f1.SImon.siflsenstop.gn.v20190710": {"source-activity"},
    # an experiment of another activity; the second is a typing error in the variant label besides (r1i1p1f1i)
    "CMIP6.CFMIP.BCC.BCC-CSM2-MR.amip.r1i1p1f1.day.psl.gn.v20190801": {"experiment-activity"},
    "CMIP6.CMIP.EC-Earth-Consortium.EC-Earth3-AerChem.piClim-2xVOC.r1i1p1f1i.AERmonZ.ta.gr.v20210503": {
        "experiment-activity", "pattern",
    },
    # a start year that the experiment has not
    "CMIP6.DCPP.DWD.MPI-ESM1-2-LR.dcppA-hindcast.s2020-r2i1p1f1.Amon.pr.gn.v20220126": {"sub-experiment"},
}  # fmt: skip


@pytest.mark.shared
def test_exactly_the_contradicting_ones_of_1987_real_names_are_refused() -> None:
    checker = open_checker()
    vocabulary = checker.vocabularies.at("CMIP6", "6.2.60.0")
    refused: dict[str, set[str]] = {}
    count, other_warnings = 0, set()
    with gzip.open(SHARED / "data" / "cmip6" / "west-items.ndjson.gz") as lines:
        for line in lines:
            count += 1
            document = orjson.loads(line)
            for finding in checker.findings(document, "CMIP6", vocabulary):
                if finding.severity is Severity.ERROR:
                    refused.setdefault(document["id"], set()).add(finding.rule)
                else:
                    other_warnings.add(finding.rule)
    assert count == 1987
    assert refused == CONTRADICTIONS
    assert len(refused) == 11
    # 27 items list less files than their size is of; persistent identifiers were drawn, not derived from the ids
    assert other_warnings == {"size-sum", "pid"}
