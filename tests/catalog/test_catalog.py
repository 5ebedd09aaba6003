"""The catalog loads whole, refuses what is unsourced, and its numbers are plausible by an independent derivation."""

from __future__ import annotations

import math
import re

import pytest
import yaml

from efflab import catalog
from efflab.errors import EfflabError

REQUIRED = [
    "T4", "V100", "A100 SXM 40GB", "A100 SXM 80GB", "A100 PCIe", "H100 SXM", "H100 PCIe", "H200", "L4", "L40S",
    "RTX 4090", "B200", "GB200", "B300", "GB300", "MI250X", "MI300X",
]  # fmt: skip


def test_the_required_accelerators_are_there():
    names = list(catalog.accelerators())
    assert len(names) >= 16
    for required in REQUIRED:
        assert any(n.startswith(required) for n in names), required


# Multiply-accumulate units × clock, from the vendors' architecture papers (two operations each).
@pytest.mark.parametrize(
    ("name", "dtype", "fma_per_clock", "clock"),
    [
        ("H100 SXM", "bf16", 132 * 4 * 512, 1.83e9),
        ("H100 SXM", "fp32", 132 * 128, 1.98e9),
        ("H200 SXM", "bf16", 132 * 4 * 512, 1.83e9),
        ("A100 SXM 80GB", "bf16", 432 * 256, 1.41e9),
        ("A100 SXM 80GB", "fp32", 6912, 1.41e9),
        ("V100 SXM2 32GB", "fp16", 640 * 64, 1.53e9),
        ("T4", "fp16", 320 * 64, 1.59e9),
        ("MI300X", "bf16", 1216 * 256, 2.1e9),
        ("MI250X", "bf16", 880 * 128, 1.7e9),
        ("RTX 4090", "fp32", 16384, 2.52e9),
    ],
)
def test_peaks_follow_from_units_and_clock(name, dtype, fma_per_clock, clock):
    assert math.isclose(catalog.accelerator(name).peak(dtype), 2 * fma_per_clock * clock, rel_tol=0.005)


def test_a_dense_peak_is_never_the_sparse_one():
    for entry in catalog.accelerators().values():
        for dtype, sparse in entry.peak_sparse.items():
            assert sparse > entry.peak_dense[dtype], (entry.name, dtype)
        if "bf16" in entry.peak_dense and "fp8" in entry.peak_dense:
            assert 1.9 < entry.peak_dense["fp8"] / entry.peak_dense["bf16"] < 2.1, entry.name
        if "tf32" in entry.peak_dense and "RTX" not in entry.name:
            assert 1.9 < entry.peak_dense["bf16"] / entry.peak_dense["tf32"] < 2.1, entry.name


def test_units_are_si():
    h200 = catalog.accelerator("H200 SXM")
    assert h200.memory == 141e9 and h200.memory_bandwidth == 4.8e12 and h200.peak("bf16") == 989.4e12
    assert h200.link_bandwidth == 450e9  # one direction; the data sheet's 900 GB/s is both


def test_a_source_covers_how_many_a_link_joins():
    linked = {a.name: a for a in catalog.accelerators().values() if a.link}
    assert {n: a.link.joins for n, a in linked.items() if a.link.joins != 8} == {
        "GB200 NVL72 (per GPU)": 72, "GB300 NVL72 (per GPU)": 72, "TPU v5e": 256,
    }  # fmt: skip
    for a in linked.values():
        assert any(re.search(rf"\b{a.link.joins} [^,;]*joined", s.covers or "") for s in a.sources), a.name


def test_unknown_names_get_the_nearest():
    with pytest.raises(EfflabError, match="H200 SXM"):
        catalog.accelerator("h200 sxm5")
    with pytest.raises(EfflabError, match="no dense fp8 peak"):
        catalog.accelerator("A100 SXM 80GB").peak("fp8")


def test_devices_are_recognised():
    assert catalog.match_device("NVIDIA H200", 143771 * 2**20).name == "H200 SXM"
    assert catalog.match_device("NVIDIA H100 80GB HBM3", 81559 * 2**20).name == "H100 SXM"
    assert catalog.match_device("NVIDIA A100-SXM4-40GB", 42_298_834_944).name == "A100 SXM 40GB"
    assert catalog.match_device("NVIDIA H200 NVL", 150_754_820_096) is None  # other peaks than the SXM module
    assert catalog.match_device("NVIDIA Imaginary 9000", 8e9) is None


GOOD = yaml.safe_load(
    """
name: Example
vendor: Example
year: 2024
peak_dense_tflops: {fp32: 10, bf16: 100}
peak_sparse_tflops: {bf16: 200}
memory_gb: 80
memory_type: HBM3
memory_bandwidth_gb_per_s: 2000
tdp_w: 400
sources: [{title: Data sheet, url: "https://example.org/sheet"}]
verified: 2026-01-01
"""
)


def load(tmp_path, *rows):
    path = tmp_path / "accelerators.yaml"
    path.write_text(yaml.safe_dump(list(rows)))
    return catalog.load(path, catalog.Accelerator)


def test_a_good_entry_loads(tmp_path):
    assert load(tmp_path, GOOD)[0].peak("bf16") == 100e12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sources": []}, "sources"),
        ({"sources": None}, "sources"),
        ({"memory_bandwidth_gb_per_s": 0}, "memory_bandwidth_gb_per_s"),
        ({"memory_gb": -1}, "memory_gb"),
        ({"peak_dense_tflops": {"bf17": 1}}, "bf17"),
        ({"peak_dense_tflops": {"bf16": 0}}, "greater than zero"),
        ({"peak_sparse_tflops": {"bf16": 50}}, "under the wrong key"),
        ({"verified": "soon"}, "verified"),
        ({"colour": "green"}, "colour"),
        ({"link": {"name": "Wire", "gb_per_s_per_direction": 100}}, r"link\.joins"),
        ({"link": {"name": "Wire", "gb_per_s_per_direction": 100, "joins": 1}}, r"link\.joins"),
    ],
)
def test_a_bad_entry_is_refused_by_name_and_field(tmp_path, change, says):
    with pytest.raises(EfflabError, match=says) as caught:
        load(tmp_path, GOOD | change)
    assert "Example" in str(caught.value)


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(EfflabError, match="sources"):
        load(tmp_path, {k: v for k, v in GOOD.items() if k != "sources"})


def test_two_entries_of_one_name_are_refused(tmp_path):
    with pytest.raises(EfflabError, match="two entries"):
        load(tmp_path, GOOD, GOOD)


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "accelerators.yaml"
    path.write_text("- name: Example\n  memory_gb: 80\n  memory_gb: 40\n")
    with pytest.raises(EfflabError, match=r"line 3: .*'memory_gb' appears twice"):
        catalog.load(path, catalog.Accelerator)


@pytest.mark.parametrize("text", ["- [unclosed", "name: not a list", ""])
def test_a_broken_file_is_refused(tmp_path, text):
    path = tmp_path / "accelerators.yaml"
    path.write_text(text)
    with pytest.raises(EfflabError, match=r"accelerators\.yaml"):
        catalog.load(path, catalog.Accelerator)
