"""Grids, data centres, power limits and processors: sourced, unlike each other, as printed, and refused when wrong."""

from __future__ import annotations

import datetime
import re

import pytest
import yaml

from efflab.catalog import energy as e
from efflab.catalog import load
from efflab.errors import EfflabError

REGIONS, FACILITIES = list(e.regions().values()), list(e.facilities().values())
CURVES, PROCESSORS = list(e.power_curves().values()), list(e.processors().values())
EVERYTHING = [*REGIONS, *FACILITIES, *CURVES, *PROCESSORS]


@pytest.mark.parametrize("entry", EVERYTHING, ids=[f"{type(x).__name__} {x.name}" for x in EVERYTHING])
def test_every_entry_can_be_looked_up_again(entry):
    assert all(s.url or s.where for s in entry.sources)
    assert datetime.date(2026, 1, 1) <= entry.verified
    if isinstance(entry, e.Region | e.Facility):
        assert re.search(r", (\d{4})$", entry.name), "the name ends with the year"
        assert int(entry.name[-4:]) == entry.year
        assert entry.year <= entry.verified.year


# Grids


def test_there_are_enough_regions_on_every_continent():
    countries = {r.name.rpartition(",")[0] for r in REGIONS if r.kind == "country"}
    clouds = [r for r in REGIONS if r.kind == "cloud region"]
    assert len(countries) >= 40 and len(clouds) >= 17
    for some in (
        {"United States", "Canada", "Mexico"},
        {"Brazil", "Chile", "Argentina"},
        {"France", "Germany", "Poland", "Norway", "Ukraine"},
        {"China", "India", "Japan", "South Korea", "Singapore", "Saudi Arabia"},
        {"South Africa", "Egypt", "Kenya", "Nigeria"},
        {"Australia", "New Zealand"},
    ):
        assert some <= countries, some - countries


# What the data of Our World in Data, of Google and the papers print, typed from them a second time
PRINTED_G_PER_KWH = {
    "United States, 2023": 369.473, "China, 2023": 582.317, "India, 2023": 713.441, "Germany, 2023": 380.95,
    "France, 2023": 56.039, "United Kingdom, 2023": 237.589, "Sweden, 2023": 40.695, "Norway, 2023": 30.08,
    "Poland, 2023": 661.926, "Canada, 2023": 170.043, "Australia, 2023": 548.692, "Japan, 2023": 485.392,
    "South Korea, 2023": 430.567, "Brazil, 2023": 98.348, "South Africa, 2023": 707.686, "Switzerland, 2023": 34.843,
    "Ireland, 2023": 290.805, "Singapore, 2023": 470.783, "Netherlands, 2023": 267.622, "Spain, 2023": 174.05,
    "Italy, 2023": 330.718, "Finland, 2023": 79.158, "Denmark, 2023": 151.65, "Iceland, 2022": 27.68,
    "Google Cloud us-central1 (Iowa), 2023": 430, "Google Cloud us-east1 (South Carolina), 2023": 560,
    "Google Cloud us-east4 (Northern Virginia), 2023": 322, "Google Cloud us-west1 (Oregon), 2023": 94,
    "Google Cloud us-west3 (Utah), 2023": 588, "Google Cloud europe-west1 (Belgium), 2023": 122,
    "Google Cloud europe-west4 (Netherlands), 2023": 236, "Google Cloud europe-west9 (Paris), 2023": 34,
    "Google Cloud europe-north1 (Finland), 2023": 46, "Google Cloud europe-central2 (Warsaw), 2023": 723,
    "Google Cloud europe-west3 (Frankfurt), 2023": 345, "Google Cloud northamerica-northeast1 (Montreal), 2023": 2,
    "Google Cloud asia-south1 (Mumbai), 2023": 648, "Google Cloud asia-east1 (Taiwan), 2023": 451,
    "Google Cloud asia-northeast1 (Tokyo), 2023": 459, "Google Cloud southamerica-east1 (Sao Paulo), 2023": 56,
    "Google Cloud africa-south1 (Johannesburg), 2023": 646, "World, 2019": 475, "World, 2022": 436,
    "United States (Strubell et al. 2019), 2018": 432.7, "United States (Patterson et al. 2021), 2020": 429,
    "United States (LLaMA and Llama 2 papers), 2021": 385, "France (Jean Zay), 2022": 57,
    "Google Iowa, gross (Patterson et al. 2021), 2020": 478,
    "Google Iowa, net of clean energy (Patterson et al. 2021), 2020": 80,
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED_G_PER_KWH)
def test_a_grid_is_as_printed(name):
    assert e.region(name).g_per_kwh == PRINTED_G_PER_KWH[name]
    assert e.region(name).carbon_intensity * 3.6e6 == pytest.approx(PRINTED_G_PER_KWH[name])


def test_a_year_that_is_not_the_newest_says_so():
    older = [r for r in REGIONS if r.kind == "country" and r.year < 2023]
    assert older and all(r.doubts for r in older)


def test_an_unknown_region_gets_the_nearest():
    with pytest.raises(EfflabError, match="France, 2023"):
        e.region("France, 2033")


# Data centres

PRINTED_PUE = {
    "Uptime survey, 2007": 2.5, "Uptime survey, 2011": 1.98, "Uptime survey, 2013": 1.65, "Uptime survey, 2018": 1.58,
    "Uptime survey, 2019": 1.67, "Uptime survey, 2020": 1.58, "Uptime survey, 2021": 1.57, "Uptime survey, 2022": 1.55,
    "Uptime survey, 2023": 1.58, "Uptime survey, 2024": 1.56, "Uptime survey, 2025": 1.54, "Google, 2021": 1.1,
    "Google, 2024": 1.09, "Meta, 2023": 1.08, "Microsoft, 2024": 1.18, "Microsoft, 2025": 1.17, "AWS, 2023": 1.15,
    "Jean Zay, 2022": 1.2, "Assumed by Strubell et al., 2018": 1.58, "Google (T5, Patterson et al.), 2019": 1.12,
}  # fmt: skip
PRINTED_WUE = {"AWS, 2024": 0.15, "Microsoft, 2025": 0.27, "Microsoft, 2024": 0.30, "Google, 2024": 1.15}


@pytest.mark.parametrize("name", PRINTED_PUE)
def test_a_pue_is_as_printed(name):
    assert e.facility(name).pue == PRINTED_PUE[name]


@pytest.mark.parametrize("name", PRINTED_WUE)
def test_a_wue_is_as_printed(name):
    assert e.facility(name).wue * 3.6e6 == pytest.approx(PRINTED_WUE[name])


def test_what_was_not_found_is_absent():
    assert e.facility("AWS, 2024").pue is None
    assert e.facility("AWS, 2023").wue is None
    with pytest.raises(EfflabError, match="Google, 2024"):
        e.facility("Gogle, 2024")


# Power limits

PRINTED_CHANGE = {  # limit: energy and time in percent of the largest, of a V100 with ResNet-50, batch 256
    225: (-4.9, 2.0), 200: (-11.6, 5.3), 175: (-17.2, 9.6), 150: (-22.5, 18.0), 125: (-20.2, 44.1), 100: (-13.8, 92.9),
}  # fmt: skip


def test_the_curves_of_power_limits():
    rows = {r.limit_w: r for r in e.power_curves()["V100, ResNet-50"].limits}
    assert set(rows) == {*PRINTED_CHANGE, 250}
    for limit, (energy, time) in PRINTED_CHANGE.items():
        assert round(100 * (rows[limit].energy - 1), 1) == energy, limit
        assert round(100 * (rows[limit].time - 1), 1) == time, limit
    bert = min(e.power_curves()["V100, BERT"].limits, key=lambda r: r.energy)
    assert (bert.limit_w, round(100 * (bert.energy - 1), 1), round(100 * (bert.time - 1), 1)) == (150, -17.8, 28.2)
    # two rows of the trace: watts and seconds of one epoch at 200 W and at the A40's largest limit
    a40 = {r.limit_w: r for r in e.power_curves()["A40, ResNet-50"].limits}
    assert a40[200].energy == pytest.approx(4123.52 * 177.583 / (3847.48 * 235.205), abs=5e-5)
    assert {c.device for c in CURVES} >= {"V100", "A40"}


# Processors

CPUID = {  # families that hide their products in virtual machines, from Linux's and AMD's lists in hexadecimal
    "Naples": ("AuthenticAMD", 0x17, 0x01), "Rome": ("AuthenticAMD", 0x17, 0x31), "Milan": ("AuthenticAMD", 0x19, 0x01),
    "Genoa": ("AuthenticAMD", 0x19, 0x11), "Bergamo": ("AuthenticAMD", 0x19, 0xA0),
    "Turin": ("AuthenticAMD", 0x1A, 0x02), "Turin Dense": ("AuthenticAMD", 0x1A, 0x11),
    "first and second generation": ("GenuineIntel", 6, 0x55), "Ice Lake": ("GenuineIntel", 6, 0x6A),
    "Sapphire Rapids": ("GenuineIntel", 6, 0x8F), "Emerald Rapids": ("GenuineIntel", 6, 0xCF),
    "Granite Rapids": ("GenuineIntel", 6, 0xAD), "Sierra Forest": ("GenuineIntel", 6, 0xAF),
    "Broadwell": ("GenuineIntel", 6, 0x4F), "Haswell": ("GenuineIntel", 6, 0x3F),
    "Ivy Bridge": ("GenuineIntel", 6, 0x3E),
}  # fmt: skip


@pytest.mark.parametrize("family", CPUID)
def test_a_hidden_product_is_found_by_its_cpuid(family):
    cpuid = "{}/{}/{}".format(*CPUID[family])
    least, most, of = e.rated_per_core("a name that says nothing", cpuid)
    assert family in of
    assert 1 < least < most < 40


def test_a_cpuid_belongs_to_one_family():
    everyone = [c for p in PROCESSORS for c in p.cpuid]
    assert len(everyone) == len(set(everyone))


def test_a_virtual_machine_of_a_cloud():
    least, most, of = e.rated_per_core("AMD EPYC", "AuthenticAMD/25/17")
    assert (least, most) == pytest.approx((290 / 84, 320 / 16))  # EPYC 9634 and 9174F
    assert of == ("EPYC 9004 (Genoa), where the EPYC 9634 is rated 290 W for 84 cores, the EPYC 9174F 320 W for 16")
    one = e.rated_per_core("AMD EPYC 9634 84-Core Processor")[2]
    assert one == "EPYC 9004 (Genoa), where the EPYC 9634 is rated 290 W for 84 cores"
    for name in ("AMD EPYC", "AMD EPYC 7B13", "Intel(R) Xeon(R) Processor @ 2.20GHz", "Apple M2", "Neoverse-V1", ""):
        assert e.rated_per_core(name) is None, name
    assert e.rated_per_core("AMD EPYC", "AuthenticAMD/99/1") is None


PRINTED_TDP = {  # whole names of /proc/cpuinfo, W and cores of the vendor
    "AMD EPYC 9654 96-Core Processor": (360, 96),
    "AMD EPYC 9654P 96-Core Processor": (360, 96),
    "AMD EPYC 9684X 96-Core Processor": (400, 96),
    "AMD EPYC 7763 64-Core Processor": (280, 64),
    "AMD EPYC 7742 64-Core Processor": (225, 64),
    "AMD EPYC 9754 128-Core Processor": (360, 128),
    "AMD EPYC 9965 192-Core Processor": (500, 192),
    "AMD EPYC 9755 128-Core Processor": (500, 128),
    "AMD Ryzen Threadripper 3990X 64-Core Processor": (280, 64),
    "AMD Ryzen 5 7600X 6-Core Processor": (105, 6),
    "Intel(R) Xeon(R) Platinum 8480+": (350, 56),
    "Intel(R) Xeon(R) Platinum 8592+": (350, 64),
    "Intel(R) Xeon(R) Gold 6154 CPU @ 3.00GHz": (200, 18),
    "Intel(R) Xeon(R) Platinum 8176 CPU @ 2.10GHz": (165, 28),
    "Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz": (270, 40),
    "Intel(R) Xeon(R) CPU E5-2699 v4 @ 2.20GHz": (145, 22),
    "Intel(R) Xeon(R) 6980P": (500, 128),
    "Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz": (15, 4),
    "13th Gen Intel(R) Core(TM) i9-13900T": (35, 24),
}


@pytest.mark.parametrize("name", PRINTED_TDP)
def test_a_name_with_its_product_gives_that_product(name):
    watts, cores = PRINTED_TDP[name]
    assert e.rated_per_core(name)[:2] == pytest.approx((watts / cores, watts / cores))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("AMD EPYC 7551P 32-Core Processor", "Naples"),
        ("AMD EPYC 7F72 24-Core Processor", "Rome"),
        ("AMD EPYC 75F3 32-Core Processor", "Milan"),
        ("AMD EPYC 9474F 48-Core Processor", "Genoa"),
        ("AMD EPYC 8324P 32-Core Processor", "Siena"),
        ("AMD EPYC 9575F 64-Core Processor", "(Turin)"),
        ("AMD EPYC 9645 96-Core Processor", "Turin Dense"),
        ("AMD Ryzen 9 5950X 16-Core Processor", "Ryzen 5000"),
        ("AMD Ryzen 7 PRO 6850U with Radeon Graphics", "Ryzen 6000"),
        ("AMD Ryzen 7 8845HS w/ Radeon 780M Graphics", "Ryzen 8000"),
        ("AMD Ryzen 9 9900X 12-Core Processor", "Ryzen 9000"),
        ("AMD Ryzen AI 9 HX 370 w/ Radeon 890M", "Ryzen AI 300"),
        ("Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", "first and second"),
        ("Intel(R) Xeon(R) Gold 6348H CPU @ 2.30GHz", "Cooper Lake"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "Ice Lake"),
        ("Intel(R) Xeon(R) Platinum 8488C", "Sapphire Rapids"),
        ("Intel(R) Xeon(R) Silver 4510", "Emerald Rapids"),
        ("Intel(R) Xeon(R) 6746E", "Sierra Forest"),
        ("Intel(R) Xeon(R) CPU E5-2673 v3 @ 2.40GHz", "Haswell"),
        ("Intel(R) Xeon(R) CPU E5-2680 v2 @ 2.80GHz", "Ivy Bridge"),
        ("Intel(R) Core(TM) i7-6700K CPU @ 4.00GHz", "sixth and seventh"),
        ("Intel(R) Core(TM) i7-1065G7 CPU @ 1.30GHz", "tenth"),
        ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", "eleventh"),
        ("12th Gen Intel(R) Core(TM) i7-12700K", "twelfth"),
    ],
)
def test_a_product_finds_its_family(name, family):
    assert family in e.rated_per_core(name)[2]
    assert sum(bool(re.fullmatch(p.names, name)) for p in PROCESSORS) == 1, "two families match this name"


def test_the_name_is_believed_before_the_cpuid():
    assert "Milan" in e.rated_per_core("AMD EPYC 7763 64-Core Processor", "AuthenticAMD/25/17")[2]


def test_the_longest_product_name_wins():
    family = e.Processor(
        name="Example",
        vendor="Example",
        year=2024,
        names=r"Example .*",
        products=[{"product": "X1", "tdp_w": 100, "cores": 10}, {"product": "X1 Pro", "tdp_w": 300, "cores": 10}],
        sources=[{"title": "Example", "url": "https://example.org"}],
        verified=datetime.date(2026, 11, 22),
    )
    assert family.watts_per_core("Example X1 Pro")[:2] == (30, 30)
    assert family.watts_per_core("Example X1")[:2] == (10, 10)
    assert family.watts_per_core("Example X2")[:2] == (10, 30)


# Refusals

GOOD = {
    e.Region: """{name: "Nowhere, 2024", year: 2024, kind: country, counts: direct, g_per_kwh: 100,
        sources: [{title: Example, url: "https://example.org"}], verified: 2026-11-22}""",
    e.Facility: """{name: "Nobody, 2024", operator: Nobody, year: 2024, covers: fleet, pue: 1.2,
        sources: [{title: Example, url: "https://example.org"}], verified: 2026-11-22}""",
    e.PowerCurve: """{name: Nothing, device: D, workload: w, limits: [{limit_w: 100, energy: 0.8, time: 1.3},
        {limit_w: 150, energy: 0.9, time: 1.1}, {limit_w: 200, energy: 1, time: 1}],
        sources: [{title: Example, url: "https://example.org"}], verified: 2026-11-22}""",
    e.Processor: """{name: None, vendor: V, year: 2024, names: "N .*", products: [{product: N1, tdp_w: 10, cores: 2}],
        sources: [{title: Example, url: "https://example.org"}], verified: 2026-11-22}""",
}


@pytest.mark.parametrize(
    ("model", "change", "says"),
    [
        (e.Region, {"sources": []}, "sources"),
        (e.Region, {"year": 24}, "year"),
        (e.Region, {"counts": "all"}, "counts"),
        (e.Region, {"g_per_kwh": 0.369e6}, "g_per_kwh"),
        (e.Region, {"g_per_mwh": 1}, "g_per_mwh"),
        (e.Facility, {"pue": 0.9}, "pue"),
        (e.Facility, {"pue": None}, "pue or wue_l_per_kwh"),
        (e.Facility, {"wue_l_per_kwh": -1}, "wue_l_per_kwh"),
        (e.PowerCurve, {"limits": [{"limit_w": 1, "energy": 1, "time": 1}]}, "limits"),
        (
            e.PowerCurve,
            {"limits": [{"limit_w": w, "energy": 1, "time": 1} for w in (200, 100, 150)]},
            "limits must rise",
        ),
        (
            e.PowerCurve,
            {"limits": [{"limit_w": w, "energy": 2, "time": 1} for w in (100, 150, 200)]},
            "largest limit must be 1",
        ),
        (e.Processor, {"products": []}, "products"),
        (e.Processor, {"products": [{"product": "N1", "tdp_w": 10, "cores": 0}]}, "cores"),
    ],
)
def test_a_bad_entry_is_refused_by_name(model, change, says, tmp_path):
    file = tmp_path / "bad.yaml"
    good = yaml.safe_load(GOOD[model])
    file.write_text(yaml.safe_dump([good]))
    assert load(file, model)[0].name == good["name"]
    file.write_text(yaml.safe_dump([good | change]))
    with pytest.raises(EfflabError) as caught:
        load(file, model)
    assert says in str(caught.value) and good["name"] in str(caught.value)


def test_two_entries_of_one_name_are_refused(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text(f"- {GOOD[e.Region]}\n- {GOOD[e.Region]}\n")
    with pytest.raises(EfflabError, match="Nowhere, 2024"):
        load(file, e.Region)


def test_names_that_are_no_regular_expression_are_refused(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump([yaml.safe_load(GOOD[e.Processor]) | {"names": "N ("}]))
    with pytest.raises(EfflabError, match="names"):
        load(file, e.Processor)
