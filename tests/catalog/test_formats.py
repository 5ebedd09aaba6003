"""Number formats load whole, refuse what cannot be, and are those of torch and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
import yaml

from efflab import catalog
from efflab.errors import EfflabError

# numpy warns when it widens a signalling NaN, which is among all bit patterns
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast")

FORMATS = catalog.formats()


def test_the_formats_of_the_chapter_are_there():
    required = {
        "FP64", "FP32", "TF32", "BF16", "FP16", "FP8 E4M3FN", "FP8 E5M2", "FP8 E4M3FNUZ", "FP8 E5M2FNUZ", "FP6 E3M2",
        "FP6 E2M3", "FP4 E2M1", "E8M0 scale", "MXFP8 E4M3", "MXFP8 E5M2", "MXFP6 E3M2", "MXFP6 E2M3", "MXFP4", "NVFP4",
    }  # fmt: skip
    assert required <= set(FORMATS)


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.torch])
def test_storage_is_torchs(name):
    one = FORMATS[name]
    tensor = torch.empty(64, dtype=getattr(torch, one.torch))
    numbers = 2 if one.torch.endswith("_x2") else 1
    assert tensor.untyped_storage().nbytes() / (64 * numbers) == one.bytes_per_element


def patterns(dtype, bits):
    """Every number of a dtype, by its bit patterns."""
    return np.arange(2**bits, dtype=np.uint8 if bits <= 8 else np.uint16).view(dtype).astype(np.float64)


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.ml_dtypes and n != "E8M0 scale"])
def test_exponent_and_mantissa_by_counting_values(name):
    """Between 1 and 2 a format has 2^m numbers; over all binades, as many exponents as its bits can write."""
    one = FORMATS[name]
    values = patterns(getattr(ml_dtypes, one.ml_dtypes), one.bits)
    finite = np.unique(values[np.isfinite(values)])
    assert np.sum((finite >= 1) & (finite < 2)) == 2**one.mantissa_bits
    assert ml_dtypes.finfo(getattr(ml_dtypes, one.ml_dtypes)).bits == one.bits
    assert one.bits == 1 + one.exponent_bits + one.mantissa_bits


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.ml_dtypes])
def test_flavour_by_what_the_patterns_are(name):
    one = FORMATS[name]
    values = patterns(getattr(ml_dtypes, one.ml_dtypes), one.bits)
    infinite, nan = int(np.isinf(values).sum()), int(np.isnan(values).sum())
    negative_zero = bool(np.any((values == 0) & np.signbit(values)))
    traits = {
        "ieee": (infinite == 2, nan == 2 * (2**one.mantissa_bits - 1), negative_zero),
        "fn": (infinite == 0, nan == 2, negative_zero),
        "fnuz": (infinite == 0, nan == 1, not negative_zero),
        "finite": (infinite == 0, nan == 0, negative_zero),
        "scale": (infinite == 0, nan == 1, not np.any(values <= 0)),
    }
    assert all(traits[one.flavour])


def test_block_formats_have_their_elements_and_shares():
    """Bytes of a tensor of 1024 numbers: elements, then scales, by hand."""
    sizes = {
        "MXFP8 E4M3": 1024 + 32, "MXFP8 E5M2": 1024 + 32, "MXFP6 E3M2": 768 + 32, "MXFP6 E2M3": 768 + 32,
        "MXFP4": 512 + 32, "NVFP4": 512 + 64,
    }  # fmt: skip
    assert {n for n, f in FORMATS.items() if f.block} == set(sizes)
    for name, size in sizes.items():
        assert FORMATS[name].bytes_per_element * 1024 == size
        assert FORMATS[name].arguments() == FORMATS[FORMATS[name].block.element].arguments()


def test_bytes_are_those_of_the_accelerators_dtypes():
    """The catalog's older table says the same of the formats that have peaks."""
    names = {dtype: dtype.upper() for dtype in ("fp64", "fp32", "tf32", "bf16", "fp16")}
    for dtype, name in (names | {"fp8": "FP8 E4M3FN", "fp4": "FP4 E2M1"}).items():
        assert catalog.BYTES_PER_ELEMENT[dtype] == catalog.number_format(name).bytes_per_element


def test_unknown_names_get_the_nearest():
    with pytest.raises(EfflabError, match="FP8 E4M3FN"):
        catalog.number_format("FP8 E4M3")


GOOD = yaml.safe_load(
    """
name: Example
exponent_bits: 5
mantissa_bits: 2
flavour: ieee
bits: 8
sources: [{title: A specification, url: "https://example.org/spec"}]
verified: 2026-01-01
"""
)


def load(tmp_path, *rows):
    path = tmp_path / "formats.yaml"
    path.write_text(yaml.safe_dump(list(rows)))
    return catalog.load(path, catalog.Format)


def test_a_good_entry_loads(tmp_path):
    assert load(tmp_path, GOOD)[0].bytes_per_element == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits": 7}, "have 8 bits together, not 7"),
        ({"flavour": "posit"}, "flavour"),
        ({"exponent_bits": 1}, "exponent_bits"),
        ({"exponent_bits": 15, "bits": 18}, "exponent_bits"),
        ({"storage_bits": 4}, "cannot be stored in 4"),
        ({"sources": []}, "sources"),
        ({"block": {"size": 1, "element": "FP4 E2M1", "scale": "E8M0 scale"}}, "size"),
        ({"colour": "green"}, "colour"),
    ],
)
def test_a_bad_entry_is_refused_by_name_and_field(tmp_path, change, says):
    with pytest.raises(EfflabError, match=says) as caught:
        load(tmp_path, GOOD | change)
    assert "Example" in str(caught.value)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"size": 32, "element": "FP8 E5M3", "scale": "E8M0 scale"}, "FP8 E5M3"),
        ({"size": 32, "element": "FP8 E4M3FN", "scale": "E8M0 scale"}, "its bits are not those of FP8 E4M3FN"),
    ],
)
def test_a_block_of_something_else_is_refused(tmp_path, monkeypatch, block, says):
    known = yaml.safe_load((catalog.FOLDER / "formats.yaml").read_text())
    (tmp_path / "formats.yaml").write_text(yaml.safe_dump([*known, GOOD | {"block": block}]))
    monkeypatch.setattr(catalog, "FOLDER", tmp_path)
    with pytest.raises(EfflabError, match=says):
        catalog.formats.__wrapped__()


def test_every_source_says_what_it_covers():
    for one in FORMATS.values():
        assert all(source.covers and source.url for source in one.sources), one.name
