"""Configuration: strict, and every mistake is one clear line."""

import pytest

from gda.config.load import dump_config, load_config, parse_config
from gda.config.sections import Arm
from gda.errors import ConfigError


def test_yaml_12_numbers_are_numbers(tmp_path):
    """`1e-4`, a string to YAML 1.1 readers, is a learning rate."""
    params = tmp_path / "params.yaml"
    params.write_text("finetune:\n  learning_rate: 1e-4\n")
    assert load_config(params).finetune.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.lerning_rate=1", "did you mean 'learning_rate'"),
        ("sampel.seed=1", "did you mean 'sample'"),
        ("sample.images_per_class=many", 'sample.images_per_class: input should be a valid integer, got "many"'),
        ("finetune.learning_rate=5", "less than or equal to 1"),
        ("sample.guidance_scale=.nan", "nan"),
        ("promote.arm=fake", "promote.arm"),
        ("seed", "expected section.field=value"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(override, message):
    """Misspelt keys, wrong types, ranges, NaN and enums are refused with the field and what is accepted."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, (override,))
    assert message.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_overrides_go_over_the_file(tmp_path):
    """`--set` wins over params.yaml and leaves its other fields alone."""
    params = tmp_path / "params.yaml"
    params.write_text("sample:\n  images_per_class: 7\n  guidance_scale: 2.0\n")
    config = load_config(params, ("sample.guidance_scale=null", "promote.arm=real+synthetic"))
    assert (config.sample.images_per_class, config.sample.guidance_scale, config.promote.arm) == (7, None, Arm.MIXED)


def test_what_is_shown_is_what_is_read():
    """`gda config show` prints something that reads back to the same configuration."""
    config = load_config(None)
    assert parse_config(dump_config(config), where="dump") == config


def test_unreadable_yaml_is_refused(tmp_path):
    """Broken YAML and a list at the top are configuration errors, not tracebacks."""
    for text in ("a: [1", "- a\n- b\n"):
        params = tmp_path / "params.yaml"
        params.write_text(text)
        with pytest.raises(ConfigError):
            load_config(params)
