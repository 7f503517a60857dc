"""The run form: typed fields and one JSON text make the configuration, and every step is given its part."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gda.config.arm import ARMS
from gda.config.load import Config, load_config, parse_config
from gda.errors import ConfigError
from gda.flow import EXTRA_NODES, GRAPH
from gda.steps.form import FORM, classifier_runs, filled_in, split_up, step_settings

ROOT = Path(__file__).resolve().parents[3]


def test_the_demos_parameters_survive_the_form() -> None:
    """params.yaml, split into fields and JSON and put together again, is the same configuration."""
    config = load_config(ROOT / "params.yaml")
    form, settings = split_up(config)
    assert set(form) == set(FORM)
    assert filled_in(form, settings) == config


@given(
    seeds=st.integers(1, 12),
    guidance=st.one_of(st.none(), st.floats(1.0, 20.0)),
    pool=st.one_of(st.none(), st.text(st.characters(codec="ascii", categories=["L"]), min_size=1)),
    steps=st.integers(1, 1000),
)
def test_any_configuration_survives_the_form(seeds: int, guidance: float | None, pool: str | None, steps: int) -> None:
    """What the form writes otherwise - numbers of seeds, 0 for tuned, an empty pool - comes back as it was."""
    content = {
        "classify": {"seeds": list(range(seeds))},
        "sample": {"guidance_scale": guidance},
        "snapshot": {"pool": pool},
        "finetune": {"num_train_steps": steps},
        "promote": {"min_seeds": 2},
    }
    config = parse_config(content, where="t")
    assert filled_in(*split_up(config)) == config


def test_numbers_may_arrive_as_floating_point() -> None:
    """A pipeline's integers may be written as 10.0; the configuration has whole numbers."""
    form, settings = split_up(Config())
    assert filled_in({name: float(value) if type(value) is int else value for name, value in form.items()}, settings) == Config()
    with pytest.raises(ConfigError, match=r"finetune\.num_train_steps"):
        filled_in(form | {"num_train_steps": 7.5}, settings)


@pytest.mark.parametrize(
    ("form", "settings", "message"),
    [
        ({"sede": 1}, "{}", "form: unknown field 'sede'; accepted: data"),
        ({"images_per_class": 5}, '{"sample": {"images_per_class": 7}}', "sample.images_per_class is the field images_per_class"),
        ({"seed": 1}, '{"seed": 2}', "settings: seed is the field seed"),
        ({}, "[]", "settings: expected a JSON object of sections, got list"),
        ({}, "{", "settings: not valid JSON"),
        ({"data": "x"}, '{"snapshot": 3}', "settings: snapshot is not a section"),
        ({"method": "fool"}, "{}", "finetune.method"),
        ({}, '{"finetune": {"jiter": 1}}', "did you mean 'jitter'?"),
    ],
)
def test_a_wrong_form_is_one_line(form, settings, message) -> None:
    """Each wrong field is named, with what is accepted; a setting has one place."""
    with pytest.raises(ConfigError) as caught:
        filled_in(form, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_seeds_that_the_form_cannot_say_are_refused() -> None:
    """Seeds other than 0, 1, 2, ... are not silently renumbered."""
    with pytest.raises(ConfigError, match="counts seeds from 0"):
        split_up(parse_config({"classify": {"seeds": [3, 4]}}, where="t"))


def test_every_node_gets_its_sections() -> None:
    """Settings by the names of the flow's nodes, each valid JSON."""
    settings = step_settings(Config())
    assert list(settings) == [node.name for node in (*GRAPH, *EXTRA_NODES)]
    for node in (*GRAPH, *EXTRA_NODES):
        assert set(json.loads(settings[node.name])) == {name.partition(".")[0] for name in node.sections}


def test_every_compared_classifier_is_listed_once() -> None:
    """Paired arms with the paired seeds, controls with their own, arms that are not compared not at all; text alone."""
    config = parse_config({"classify": {"arms": ["real", "real+synthetic", "zero_shot"], "seeds": [0, 1], "control_seeds": [4]}}, where="t")
    runs = classifier_runs(config)
    assert runs == [
        {"arm": "real", "seed": "0"},
        {"arm": "real", "seed": "1"},
        {"arm": "real+synthetic", "seed": "0"},
        {"arm": "real+synthetic", "seed": "1"},
        {"arm": "zero_shot", "seed": "4"},
    ]
    assert len(classifier_runs(Config())) == sum(len(Config().classify.seeds_of(arm)) for arm in Config().classify.arms)
    assert {run["arm"] for run in runs} <= set(ARMS)
