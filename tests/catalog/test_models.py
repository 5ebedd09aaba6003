"""Every model of the catalog has the size that was published, or says why not; the loader refuses what is wrong."""

from __future__ import annotations

import inspect

import pytest
import yaml

from efflab import catalog
from efflab.errors import EfflabError
from efflab.formulas import transformer
from efflab.units import PARAMETER, parse

REQUIRED = [
    "GPT-2", "GPT-3 175B", "OPT-175B", "BLOOM", "Pythia", "Chinchilla", "Gopher", "MT-NLG", "PaLM", "LLaMA 7B",
    "LLaMA 65B", "Llama 2 7B", "Llama 2 70B", "Llama 3.1 8B", "Llama 3.1 70B", "Llama 3.1 405B", "Mistral 7B",
    "Qwen2.5", "Gemma", "TinyLlama",
]  # fmt: skip
MODELS = list(catalog.models().values())


def test_the_required_models_are_there():
    assert len(MODELS) >= 22
    for required in REQUIRED:
        assert any(m.name.startswith(required) for m in MODELS), required


@pytest.mark.parametrize("model", MODELS, ids=[m.name for m in MODELS])
def test_the_shape_gives_the_published_size(model):
    count = transformer.parameter_count(**model.architecture())
    off = count / model.parameters - 1
    if model.differs:
        assert abs(off) > 0.005, "the source does not differ by more than 0.5%: remove 'differs'"
        assert abs(count / parse(model.differs.correct, PARAMETER) - 1) < 1e-3
    else:
        assert abs(off) <= 0.005, f"printed {model.parameters_printed}, from the shape {count:,.0f} ({off:+.2%})"


@pytest.mark.parametrize("model", MODELS, ids=[m.name for m in MODELS])
def test_every_model_has_a_source_for_its_shape_and_its_tokens(model):
    assert all(s.url and s.covers for s in model.sources)
    covers = " ".join(s.covers for s in model.sources)
    assert "layers" in covers or "shape" in covers
    if model.tokens is None:
        assert any("tokens" in d for d in model.doubts), "say that no number of tokens was found"


def test_architecture_gives_exactly_the_arguments_of_parameter_count():
    wanted = set(inspect.signature(transformer.parameter_count).parameters)
    assert all(set(m.architecture()) == wanted for m in MODELS)


def test_numbers_are_as_printed():
    bloom, chinchilla = catalog.model("BLOOM 176B"), catalog.model("Chinchilla 70B")
    assert bloom.parameters == 176_247_271_424
    # the model card of BLOOM prints its embedding, Gemma's report and Pythia's card all that is not embedding
    rows = ("hidden_size", "vocabulary", "positions", "tied_embeddings")
    assert transformer.embedding_parameters(**{k: bloom.architecture()[k] for k in rows}) == 3_596_615_680
    for name, printed in (("Gemma 2B", 1_981_884_416), ("Gemma 7B", 7_751_248_896), ("Pythia 70M", 18_915_328)):
        shape = {k: v for k, v in catalog.model(name).architecture().items() if k not in rows[1:]}
        assert transformer.non_embedding_parameters(**shape) == printed, name
    assert chinchilla.tokens == 1.4e12 and chinchilla.tokens / chinchilla.parameters == pytest.approx(20)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(EfflabError, match="Chinchilla 70B"):
        catalog.model("chinchila")


GOOD = yaml.safe_load(
    """
name: Example 1B
maker: Example
year: 2024
shape: {layers: 2, hidden_size: 8, intermediate_size: 32, query_heads: 4, kv_heads: 2, head_dim: 2, vocabulary: 100,
        positions: 0, mlp: gated, tied_embeddings: true, biases: none, norm: rms, norms_per_block: 2, outer_norms: 1}
sequence_length: 16
parameters_printed: 2.6k
tokens_printed: 1.4T
sources: [{title: Paper, url: "https://example.org/paper"}]
verified: 2026-01-01
"""
)


def load(tmp_path, *rows):
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump(list(rows)))
    return catalog.load(path, catalog.Model)


def test_a_good_entry_loads(tmp_path):
    model = load(tmp_path, GOOD)[0]
    assert model.tokens == 1.4e12 and model.architecture()["mlp_matrices"] == 3
    assert load(tmp_path, GOOD | {"tokens_printed": None})[0].tokens is None


def without(key):
    return {"shape": {k: v for k, v in GOOD["shape"].items() if k != key}}


def shape(**change):
    return {"shape": GOOD["shape"] | change}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sources": []}, "sources"),
        (without("kv_heads"), r"shape\.kv_heads"),
        (without("norms_per_block"), r"shape\.norms_per_block"),
        (shape(kv_heads=3), "4 query heads cannot share 3 KV heads"),
        (shape(layers=0), r"shape\.layers"),
        (shape(layers=1.5), r"shape\.layers"),
        (shape(positions=-1), r"shape\.positions"),
        (shape(mlp="swiglu"), r"shape\.mlp"),
        (shape(experts=8), r"shape\.experts"),
        ({"parameters_printed": "many"}, "parameters_printed"),
        ({"parameters_printed": "7 GB"}, "parameters_printed"),
        ({"parameters_printed": "-7B"}, "greater than zero"),
        ({"tokens_printed": "1.4 TB"}, "tokens_printed"),
        ({"differs": {"kind": "rounded", "correct": "7 TB", "why": "a long enough reason"}}, r"differs\.correct"),
        ({"differs": {"kind": "rounded", "correct": "7B"}}, r"differs\.why"),
        ({"verified": "soon"}, "verified"),
        ({"colour": "green"}, "colour"),
    ],
)
def test_a_bad_entry_is_refused_by_name_and_field(tmp_path, change, says):
    with pytest.raises(EfflabError, match=says) as caught:
        load(tmp_path, GOOD | change)
    assert "Example 1B" in str(caught.value)


def test_no_count_of_tokens_must_be_said(tmp_path):
    with pytest.raises(EfflabError, match="tokens_printed"):
        load(tmp_path, {k: v for k, v in GOOD.items() if k != "tokens_printed"})
