"""What sample data is made of: models, experiments and variables of CMIP6, and a data node for each institution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Model:
    """A registered source: what takes part in what, and each component's native nominal resolution in km."""

    source_id: str
    institutions: str  # those which may publish it, separated by spaces
    activities: str  # participation, as far as the experiments below belong to it
    components: str  # "<realm>=<km>", separated by spaces; a component that the model lacks is not named
    grid: str  # grid label on which it reports atmosphere and land
    ocean_grid: str  # and ocean, sea ice, ocean biogeochemistry

    @property
    def resolutions(self) -> dict[str, str]:
        """Nominal resolution by realm, as the vocabulary writes it ("100 km")."""
        pairs = (component.split("=") for component in self.components.split())
        return {realm: f"{kilometres} km" for realm, kilometres in pairs}


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment: whose it is, which components it needs and allows, and the years that it covers."""

    experiment_id: str
    activities: str
    required: str  # source types, separated by spaces; the first is the kind of run
    optional: str  # source types that may be added
    length: int  # years, the least that one simulation has
    title: str
    years: tuple[int, int] | None = None  # first and last; None where each model chooses its own
    starts: tuple[int, int] | None = None  # range of start years of its sub-experiments; None: it has none


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable as one table of the data request has it."""

    table_id: str
    variable_id: str
    frequency: str
    realms: str
    units: str
    standard_name: str
    long_name: str


# Facts carried over, not texts. The grid labels alone are the models' habit: no vocabulary ties them to a model.
# Models, experiments: CMIP6_CVs 6.2.60.0, https://github.com/WCRP-CMIP/CMIP6_CVs (WCRP, CC BY 4.0).
# Variables: data request 01.00.33, https://github.com/PCMDI/cmip6-cmor-tables (PCMDI, BSD-3-Clause).
MODELS: Final = (
    Model(
        "ACCESS-CM2",
        "CSIRO-ARCCSS",
        "CMIP DAMIP OMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=250 land=250 ocean=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "ACCESS-ESM1-5",
        "CSIRO",
        "CMIP DAMIP LUMIP OMIP PMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=250 land=250 ocean=100 ocnBgchem=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model("AWI-ESM-1-1-LR", "AWI", "CMIP PMIP", "atmos=250 land=250 ocean=100 seaIce=100", "gn", "gn"),
    Model(
        "BCC-CSM2-MR",
        "BCC",
        "CMIP DAMIP DCPP LS3MIP LUMIP RFMIP ScenarioMIP",
        "atmos=100 land=100 ocean=50 seaIce=50",
        "gn",
        "gn",
    ),
    Model("BCC-ESM1", "BCC", "AerChemMIP CMIP", "atmos=250 atmosChem=250 land=250 ocean=50 seaIce=50", "gn", "gn"),
    Model(
        "CESM2",
        "NCAR",
        "AerChemMIP CMIP DAMIP DCPP LS3MIP LUMIP OMIP PMIP RFMIP ScenarioMIP",
        "aerosol=100 atmos=100 atmosChem=100 land=100 landIce=5 ocean=100 ocnBgchem=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "CESM2-WACCM",
        "NCAR",
        "AerChemMIP CMIP RFMIP ScenarioMIP",
        "aerosol=100 atmos=100 atmosChem=100 land=100 landIce=5 ocean=100 ocnBgchem=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "CMCC-CM2-SR5",
        "CMCC",
        "AerChemMIP CMIP DAMIP DCPP OMIP ScenarioMIP",
        "aerosol=100 atmos=100 land=100 ocean=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "CNRM-CM6-1",
        "CNRM-CERFACS",
        "CMIP DAMIP DCPP LS3MIP OMIP PMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=250 atmosChem=250 land=250 ocean=100 seaIce=100",
        "gr",
        "gn",
    ),
    Model(
        "CNRM-ESM2-1",
        "CNRM-CERFACS",
        "AerChemMIP CMIP DCPP LS3MIP LUMIP OMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=250 atmosChem=250 land=250 ocean=100 ocnBgchem=100 seaIce=100",
        "gr",
        "gn",
    ),
    Model(
        "CanESM5",
        "CCCma",
        "CMIP DAMIP DCPP LS3MIP LUMIP OMIP RFMIP ScenarioMIP",
        "aerosol=500 atmos=500 atmosChem=500 land=500 landIce=500 ocean=100 ocnBgchem=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "E3SM-1-0",
        "E3SM-Project LLNL UCI UCSB",
        "CMIP DAMIP ScenarioMIP",
        "aerosol=100 atmos=100 atmosChem=100 land=100 ocean=50 seaIce=50",
        "gr",
        "gr",
    ),
    Model(
        "EC-Earth3",
        "EC-Earth-Consortium",
        "CMIP DAMIP DCPP LS3MIP OMIP PMIP RFMIP ScenarioMIP",
        "atmos=100 land=100 ocean=100 seaIce=100",
        "gr",
        "gn",
    ),
    Model(
        "FGOALS-g3",
        "CAS",
        "CMIP DAMIP DCPP LS3MIP OMIP PMIP ScenarioMIP",
        "atmos=250 land=250 ocean=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "GFDL-CM4",
        "NOAA-GFDL",
        "CMIP DAMIP OMIP RFMIP ScenarioMIP",
        "aerosol=100 atmos=100 atmosChem=100 land=100 landIce=100 ocean=25 ocnBgchem=25 seaIce=25",
        "gr1",
        "gn",
    ),
    Model(
        "GFDL-ESM4",
        "NOAA-GFDL",
        "AerChemMIP CMIP DAMIP LUMIP RFMIP ScenarioMIP",
        "aerosol=100 atmos=100 atmosChem=100 land=100 landIce=100 ocean=50 ocnBgchem=50 seaIce=50",
        "gr1",
        "gn",
    ),
    Model(
        "GISS-E2-1-G",
        "NASA-GISS",
        "AerChemMIP CMIP DAMIP LS3MIP LUMIP OMIP PMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=250 atmosChem=250 land=250 ocean=100 seaIce=250",
        "gn",
        "gn",
    ),
    Model(
        "HadGEM3-GC31-LL",
        "MOHC NERC",
        "CMIP DAMIP LS3MIP LUMIP PMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=250 land=250 ocean=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "HadGEM3-GC31-MM",
        "MOHC",
        "CMIP DCPP LS3MIP OMIP ScenarioMIP",
        "aerosol=100 atmos=100 land=100 ocean=25 seaIce=25",
        "gn",
        "gn",
    ),
    Model("INM-CM5-0", "INM", "CMIP ScenarioMIP", "aerosol=100 atmos=100 land=100 ocean=50 seaIce=50", "gr1", "gr1"),
    Model(
        "IPSL-CM6A-LR",
        "IPSL",
        "AerChemMIP CMIP DAMIP DCPP LS3MIP LUMIP OMIP PMIP RFMIP ScenarioMIP",
        "atmos=250 land=250 ocean=100 ocnBgchem=100 seaIce=100",
        "gr",
        "gn",
    ),
    Model(
        "MIROC-ES2L",
        "MIROC",
        "CMIP DAMIP LUMIP OMIP PMIP ScenarioMIP",
        "aerosol=500 atmos=500 land=500 ocean=100 ocnBgchem=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "MIROC6",
        "MIROC",
        "AerChemMIP CMIP DAMIP DCPP LS3MIP OMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=250 land=250 ocean=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "MPI-ESM1-2-HR",
        "MPI-M DWD DKRZ",
        "CMIP DCPP OMIP ScenarioMIP",
        "aerosol=100 atmos=100 land=100 ocean=50 ocnBgchem=50 seaIce=50",
        "gn",
        "gn",
    ),
    Model(
        "MPI-ESM1-2-LR",
        "MPI-M AWI DKRZ DWD",
        "CMIP DAMIP DCPP LS3MIP LUMIP OMIP PMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=250 land=250 ocean=250 ocnBgchem=250 seaIce=250",
        "gn",
        "gn",
    ),
    Model(
        "MRI-ESM2-0",
        "MRI",
        "AerChemMIP CMIP DAMIP DCPP LS3MIP OMIP PMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=100 atmosChem=250 land=100 ocean=100 ocnBgchem=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "NorESM2-LM",
        "NCC",
        "AerChemMIP CMIP DAMIP DCPP LUMIP OMIP PMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=250 atmosChem=250 land=250 landIce=250 ocean=100 ocnBgchem=100 seaIce=100",
        "gn",
        "gn",
    ),
    Model(
        "UKESM1-0-LL",
        "MOHC NERC NIMS-KMA NIWA",
        "AerChemMIP CMIP DAMIP LS3MIP LUMIP OMIP PMIP RFMIP ScenarioMIP",
        "aerosol=250 atmos=250 atmosChem=250 land=250 ocean=100 ocnBgchem=100 seaIce=100",
        "gn",
        "gn",
    ),
)

EXPERIMENTS: Final = (
    Experiment("1pctCO2", "CMIP", "AOGCM", "AER CHEM BGC", 150, "1 percent per year increase in CO2"),
    Experiment("abrupt-4xCO2", "CMIP", "AOGCM", "AER CHEM BGC", 150, "abrupt quadrupling of CO2"),
    Experiment("amip", "CMIP", "AGCM", "AER CHEM BGC", 36, "AMIP", years=(1979, 2014)),
    Experiment(
        "dcppA-hindcast",
        "DCPP",
        "AOGCM",
        "AER CHEM BGC",
        5,
        "hindcast initialized based on observations and using historical forcing",
        starts=(1960, 2019),
    ),
    Experiment(
        "esm-hist",
        "CMIP",
        "AOGCM BGC",
        "AER CHEM",
        165,
        "all-forcing simulation of the recent past with atmospheric CO2 concentration calculated",
        years=(1850, 2014),
    ),
    Experiment(
        "esm-piControl",
        "CMIP",
        "AOGCM BGC",
        "AER CHEM",
        500,
        "pre-industrial control simulation with CO2 concentration calculated",
    ),
    Experiment(
        "hist-GHG", "DAMIP", "AOGCM", "AER CHEM BGC", 171, "historical well-mixed GHG-only run", years=(1850, 2020)
    ),
    Experiment("hist-nat", "DAMIP", "AOGCM", "AER CHEM BGC", 171, "historical natural-only run", years=(1850, 2020)),
    Experiment(
        "historical",
        "CMIP",
        "AOGCM",
        "AER CHEM BGC",
        165,
        "all-forcing simulation of the recent past",
        years=(1850, 2014),
    ),
    Experiment("land-hist", "LS3MIP LUMIP", "LAND", "BGC", 165, "historical land-only", years=(1850, 2014)),
    Experiment("lgm", "PMIP", "AOGCM", "AER CHEM BGC", 100, "last glacial maximum"),
    Experiment("midHolocene", "PMIP", "AOGCM", "AER CHEM BGC", 200, "mid-Holocene"),
    Experiment(
        "omip1",
        "OMIP",
        "OGCM",
        "BGC",
        310,
        "OMIP experiment forced by Large and Yeager (CORE-2, NCEP) atmospheric data set and initialized with "
        "observed physical and biogeochemical ocean data",
    ),
    Experiment("past1000", "PMIP", "AOGCM", "AER CHEM BGC", 1000, "last millennium", years=(850, 1849)),
    Experiment("past2k", "PMIP", "AOGCM", "AER CHEM BGC", 1849, "last two millennia experiment", years=(1, 1849)),
    Experiment(
        "piClim-control",
        "RFMIP AerChemMIP",
        "AGCM",
        "AER CHEM BGC",
        30,
        "Control simulation providing baseline for evaluating effective radiative forcing (ERF)",
    ),
    Experiment("piControl", "CMIP", "AOGCM", "AER CHEM BGC", 500, "pre-industrial control"),
    Experiment(
        "ssp126", "ScenarioMIP", "AOGCM", "AER CHEM BGC", 86, "update of RCP2.6 based on SSP1", years=(2015, 2300)
    ),
    Experiment(
        "ssp245", "ScenarioMIP", "AOGCM", "AER CHEM BGC", 86, "update of RCP4.5 based on SSP2", years=(2015, 2100)
    ),
    Experiment(
        "ssp370",
        "ScenarioMIP AerChemMIP",
        "AOGCM",
        "AER CHEM BGC",
        86,
        "gap-filling scenario reaching 7.0 based on SSP3",
        years=(2015, 2100),
    ),
    Experiment(
        "ssp585", "ScenarioMIP", "AOGCM", "AER CHEM BGC", 86, "update of RCP8.5 based on SSP5", years=(2015, 2100)
    ),
)

VARIABLES: Final = (
    Variable("3hr", "pr", "3hr", "atmos", "kg m-2 s-1", "precipitation_flux", "Precipitation"),
    Variable("3hr", "tas", "3hrPt", "atmos", "K", "air_temperature", "Near-Surface Air Temperature"),
    Variable("6hrLev", "ta", "6hrPt", "atmos", "K", "air_temperature", "Air Temperature"),
    Variable("6hrPlev", "psl", "6hr", "atmos", "Pa", "air_pressure_at_mean_sea_level", "Sea Level Pressure"),
    Variable("6hrPlevPt", "psl", "6hrPt", "atmos", "Pa", "air_pressure_at_mean_sea_level", "Sea Level Pressure"),
    Variable("AERmon", "o3", "mon", "aerosol", "mol mol-1", "mole_fraction_of_ozone_in_air", "Mole Fraction of O3"),
    Variable(
        "AERmon",
        "od550aer",
        "mon",
        "aerosol",
        "1",
        "atmosphere_optical_thickness_due_to_ambient_aerosol_particles",
        "Ambient Aerosol Optical Thickness at 550nm",
    ),
    Variable("AERmonZ", "ta", "mon", "aerosol", "K", "air_temperature", "Air Temperature"),
    Variable("Amon", "huss", "mon", "atmos", "1", "specific_humidity", "Near-Surface Specific Humidity"),
    Variable("Amon", "pr", "mon", "atmos", "kg m-2 s-1", "precipitation_flux", "Precipitation"),
    Variable("Amon", "psl", "mon", "atmos", "Pa", "air_pressure_at_mean_sea_level", "Sea Level Pressure"),
    Variable(
        "Amon", "rsut", "mon", "atmos", "W m-2", "toa_outgoing_shortwave_flux", "TOA Outgoing Shortwave Radiation"
    ),
    Variable("Amon", "ta", "mon", "atmos", "K", "air_temperature", "Air Temperature"),
    Variable("Amon", "tas", "mon", "atmos", "K", "air_temperature", "Near-Surface Air Temperature"),
    Variable("Amon", "ua", "mon", "atmos", "m s-1", "eastward_wind", "Eastward Wind"),
    Variable(
        "CFday",
        "clisccp",
        "day",
        "atmos",
        "%",
        "cloud_area_fraction_in_atmosphere_layer",
        "ISCCP Cloud Area Percentage",
    ),
    Variable("Eday", "ts", "day", "atmos", "K", "surface_temperature", "Surface Temperature"),
    Variable("Emon", "cSoil", "mon", "land", "kg m-2", "soil_mass_content_of_carbon", "Carbon Mass in Model Soil Pool"),
    Variable("Eyr", "cVeg", "yrPt", "land", "kg m-2", "vegetation_carbon_content", "Carbon Mass in Vegetation"),
    Variable(
        "ImonAnt",
        "acabf",
        "mon",
        "landIce",
        "kg m-2 s-1",
        "land_ice_surface_specific_mass_balance_flux",
        "Surface Mass Balance Flux",
    ),
    Variable("ImonAnt", "ts", "mon", "landIce land", "K", "surface_temperature", "Surface Temperature"),
    Variable(
        "ImonGre",
        "acabf",
        "mon",
        "landIce",
        "kg m-2 s-1",
        "land_ice_surface_specific_mass_balance_flux",
        "Surface Mass Balance Flux",
    ),
    Variable("ImonGre", "snm", "mon", "landIce land", "kg m-2 s-1", "surface_snow_melt_flux", "Surface Snow Melt"),
    Variable("LImon", "snw", "mon", "landIce land", "kg m-2", "surface_snow_amount", "Surface Snow Amount"),
    Variable(
        "Lmon",
        "gpp",
        "mon",
        "land",
        "kg m-2 s-1",
        "gross_primary_productivity_of_biomass_expressed_as_carbon",
        "Carbon Mass Flux out of Atmosphere Due to Gross Primary Production on Land [kgC m-2 s-1]",
    ),
    Variable("Lmon", "lai", "mon", "land", "1", "leaf_area_index", "Leaf Area Index"),
    Variable("Lmon", "mrso", "mon", "land", "kg m-2", "mass_content_of_water_in_soil", "Total Soil Moisture Content"),
    Variable("Oday", "tos", "day", "ocean", "degC", "sea_surface_temperature", "Sea Surface Temperature"),
    Variable("Ofx", "areacello", "fx", "ocean", "m2", "cell_area", "Grid-Cell Area for Ocean Variables"),
    Variable("Ofx", "deptho", "fx", "ocean", "m", "sea_floor_depth_below_geoid", "Sea Floor Depth Below Geoid"),
    Variable(
        "Omon",
        "chl",
        "mon",
        "ocnBgchem",
        "kg m-3",
        "mass_concentration_of_phytoplankton_expressed_as_chlorophyll_in_sea_water",
        "Mass Concentration of Total Phytoplankton Expressed as Chlorophyll in Sea Water",
    ),
    Variable("Omon", "so", "mon", "ocean", "0.001", "sea_water_salinity", "Sea Water Salinity"),
    Variable(
        "Omon", "thetao", "mon", "ocean", "degC", "sea_water_potential_temperature", "Sea Water Potential Temperature"
    ),
    Variable("Omon", "tos", "mon", "ocean", "degC", "sea_surface_temperature", "Sea Surface Temperature"),
    Variable("Omon", "zos", "mon", "ocean", "m", "sea_surface_height_above_geoid", "Sea Surface Height Above Geoid"),
    Variable(
        "Oyr",
        "o2",
        "yr",
        "ocnBgchem",
        "mol m-3",
        "mole_concentration_of_dissolved_molecular_oxygen_in_sea_water",
        "Dissolved Oxygen Concentration",
    ),
    Variable("SIday", "siconc", "day", "seaIce", "%", "sea_ice_area_fraction", "Sea-Ice Area Percentage (Ocean Grid)"),
    Variable("SImon", "siconc", "mon", "seaIce", "%", "sea_ice_area_fraction", "Sea-Ice Area Percentage (Ocean Grid)"),
    Variable("SImon", "sithick", "mon", "seaIce ocean", "m", "sea_ice_thickness", "Sea Ice Thickness"),
    Variable("day", "pr", "day", "atmos", "kg m-2 s-1", "precipitation_flux", "Precipitation"),
    Variable("day", "sfcWind", "day", "atmos", "m s-1", "wind_speed", "Daily-Mean Near-Surface Wind Speed"),
    Variable("day", "tas", "day", "atmos", "K", "air_temperature", "Near-Surface Air Temperature"),
    Variable("day", "tasmax", "day", "atmos", "K", "air_temperature", "Daily Maximum Near-Surface Air Temperature"),
    Variable("day", "zg", "day", "atmos", "m", "geopotential_height", "Geopotential Height"),
    Variable("fx", "areacella", "fx", "atmos land", "m2", "cell_area", "Grid-Cell Area for Atmospheric Grid Variables"),
    Variable("fx", "orog", "fx", "land", "m", "surface_altitude", "Surface Altitude"),
    Variable(
        "fx",
        "sftlf",
        "fx",
        "atmos",
        "%",
        "land_area_fraction",
        "Percentage of the Grid Cell Occupied by Land (Including Lakes)",
    ),
)

# The data node of each institution. Names under .example are reserved: nothing answers there.
NODES: Final = {
    "AWI": "esgf.awi.example",
    "BCC": "esgf.bcc.example",
    "CAS": "esgf.lasg.example",
    "CCCma": "esgf.cccma.example",
    "CMCC": "esgf-node.cmcc.example",
    "CNRM-CERFACS": "esg1.cnrm-cerfacs.example",
    "CSIRO": "esgf.nci.example",
    "CSIRO-ARCCSS": "esgf.nci.example",
    "DKRZ": "esgf3.dkrz.example",
    "DWD": "esgf3.dkrz.example",
    "E3SM-Project": "esgf-data.llnl.example",
    "EC-Earth-Consortium": "esgf.ec-earth.example",
    "INM": "esgf.inm.example",
    "IPSL": "vesg.ipsl.example",
    "LLNL": "esgf-data.llnl.example",
    "MIROC": "esgf-data.miroc.example",
    "MOHC": "esgf.ceda.example",
    "MPI-M": "esgf3.dkrz.example",
    "MRI": "esgf-data.mri.example",
    "NASA-GISS": "dpesgf.nccs.example",
    "NCAR": "esgf-data.ncar.example",
    "NCC": "noresg.nird.example",
    "NERC": "esgf.ceda.example",
    "NIMS-KMA": "esgf-data.nims.example",
    "NIWA": "esgf-data.niwa.example",
    "NOAA-GFDL": "esgdata.gfdl.example",
    "UCI": "esgf-data.uci.example",
    "UCSB": "esgf-data.ucsb.example",
}
