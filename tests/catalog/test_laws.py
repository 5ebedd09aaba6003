"""The catalog's scaling laws: complete, sourced, and consistent with each other as print says."""

from __future__ import annotations

import math

import pytest
import yaml

from efflab import catalog
from efflab.errors import EfflabError
from efflab.formulas.scaling_laws import EXPONENT, parametric_loss


def test_the_three_published_fits_are_there():
    assert list(catalog.laws()) == ["Hoffmann 2022, rounded", "Hoffmann 2022, unrounded", "Besiroglu 2024"]


def test_the_printed_constants_are_the_unrounded_ones_rounded():
    printed, exact = catalog.law("Hoffmann 2022, rounded"), catalog.law("Hoffmann 2022, unrounded")
    for name, digits in [
        ("irreducible_loss", 2),
        ("parameter_coefficient", 1),
        ("token_coefficient", 1),
        ("parameter_exponent", 2),
        ("token_exponent", 2),
    ]:
        assert round(getattr(exact, name), digits) == getattr(printed, name), name


def test_the_unrounded_coefficients_are_the_exponentials_of_the_tex_source():
    law = catalog.law("Hoffmann 2022, unrounded")
    logs = [math.log(v) for v in (law.parameter_coefficient, law.token_coefficient, law.irreducible_loss)]
    assert logs == pytest.approx([6.0073404, 6.0179186, 0.5267228], abs=1e-12)


@pytest.mark.parametrize("law", catalog.laws().values(), ids=lambda law: law.name)
def test_a_law_is_in_the_formulas_range_and_falls(law):
    assert EXPONENT.low < law.parameter_exponent < EXPONENT.high and EXPONENT.low < law.token_exponent < EXPONENT.high
    losses = [parametric_loss(parameters=n, tokens=20 * n, **law.constants()) for n in (1e8, 1e10, 1e12)]
    assert losses == sorted(losses, reverse=True) and 1.6 < losses[-1] < losses[0] < 4
    assert set(law.standard_errors) <= set(law.constants())
    assert all(s.url for s in law.sources) and law.doubts


def test_kaplans_laws_give_losses_of_language():
    laws = catalog.power_laws()
    assert {law.scale for law in laws.values()} == {"parameters", "tokens", "petaflop_days"}
    size = laws["Kaplan 2020, size"]
    assert (size.critical_scale / 1.5e9) ** size.exponent == pytest.approx(2.3, abs=0.1)  # a model of GPT-2's size


def test_an_unknown_law_is_answered_with_the_nearest():
    with pytest.raises(EfflabError, match="Did you mean 'Besiroglu 2024'"):
        catalog.law("Besiroglu")


@pytest.mark.parametrize(
    ("change", "says"),
    [({"sources": []}, "sources"), ({"token_exponent": 28}, "token_exponent"), ({"gamma": 1}, "gamma")],
)
def test_an_incomplete_or_implausible_law_does_not_load(tmp_path, change, says):
    rows = yaml.safe_load((catalog.FOLDER / "laws.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "laws.yaml"
    path.write_text(yaml.safe_dump([rows[0] | change]), encoding="utf-8")
    with pytest.raises(EfflabError, match=says):
        catalog.load(path, catalog.Law)
