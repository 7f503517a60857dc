"""Old names of keys, values and flags: each error names the new one, and an old params.yaml is converted in place."""

import re
from pathlib import Path

import pytest

from gda.cli.main import main
from gda.config.load import dump_config, load_config, parse_config
from gda.config.renamed import FLAGS, KEYS, VALUES, convert
from gda.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
OLD = """\
# Our run.
finetune:
  train_batch_size: 8      # small
  lr_warmup_steps: 3
validate: {on_fail: drop_and_redraw, "redraw_rounds": 2}
classify:
  num_updates: 400
  mixed_num_updates: 500
  precision: 'fp32'
  seeds: [0, 1]
  trainings:
    light: {warmup_updates: 3, augment: standard}
    # The usual recipe.
    fast:
      clip_grad: 1.0
"""


@pytest.mark.parametrize(("section", "old", "new"), [(s, old, new) for s, keys in KEYS.items() for old, new in keys.items()])
def test_an_old_key_names_the_new_one(section, old, new):
    """Protects users of an earlier version: the error says what a key is called now, and the new key exists."""
    with pytest.raises(ConfigError, match=rf"--set: {section}\.{old} is now {section}\.{new}; gda config convert rewrites"):
        load_config(None, (f"{section}.{old}=1",))
    fields = dump_config(load_config(None))[section]
    assert new in fields
    assert old not in fields


@pytest.mark.parametrize(
    ("section", "key", "old", "new"),
    [(s, key, old, new) for s, keys in VALUES.items() for key, words in keys.items() for old, new in words.items()],
)
def test_an_old_value_names_the_new_one(section, key, old, new):
    """The same for values; the new one is accepted."""
    with pytest.raises(ConfigError, match=rf"{section}\.{key}: {old} is now {new}"):
        load_config(None, (f"{section}.{key}={old}",))
    assert dump_config(load_config(None, (f'{section}.{key}="{new}"',)))[section][key] == new


def test_an_old_key_of_a_training_is_found():
    """Trainings of `classify.trainings` have the section's names."""
    with pytest.raises(ConfigError, match=r"classify\.trainings\.fast\.clip_grad is now classify\.trainings\.fast\.max_grad_norm"):
        parse_config({"classify": {"trainings": {"fast": {"clip_grad": 1.0}}}}, where="t")


def test_an_old_file_is_converted_and_nothing_else_in_it_changes(tmp_path, monkeypatch, capsys):
    """Comments, order, quotes and layout stay; every change is printed; the result is a valid configuration."""
    monkeypatch.chdir(tmp_path)
    params = tmp_path / "params.yaml"
    params.write_text(OLD)
    assert main(["config", "convert"]) == 0
    expected = OLD
    for old, new in (
        ("train_batch_size", "batch_size"), ("lr_warmup_steps", "warmup_steps"), ("drop_and_redraw", "replace_rejected"),
        ("redraw_rounds", "replacement_rounds"), ("mixed_num_updates", "mixed_num_train_steps"), (" num_updates", " num_train_steps"),
        ("precision: 'fp32'", "mixed_precision: 'no'"), ("warmup_updates", "warmup_steps"), ("clip_grad", "max_grad_norm"),
    ):  # fmt: skip
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    assert params.read_text() == expected
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 10
    assert "config: params.yaml: classify.trainings.light.warmup_updates -> classify.trainings.light.warmup_steps" in printed
    assert "config: params.yaml: classify.mixed_precision: fp32 -> no" in printed
    config = load_config(params)
    assert (config.finetune.batch_size, config.classify.mixed_precision, config.validate_.on_fail) == (8, "no", "replace_rejected")
    assert main(["config", "convert"]) == 0
    assert capsys.readouterr().out == "config: params.yaml has no old names\n"
    assert params.read_text() == expected


def test_a_merged_key_is_changed_where_it_is_written():
    """YAML's anchors and merges: one change for what two trainings share."""
    text = "classify:\n  trainings:\n    one: &one\n      clip_grad: 1.0\n    two:\n      <<: *one\n      augment: strong\n"
    new, changes = convert(text, where="t")
    assert new == text.replace("clip_grad", "max_grad_norm")
    assert changes == ["classify.trainings.one.clip_grad -> classify.trainings.one.max_grad_norm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classify:\n  clip_grad: 1.0\n  max_grad_norm: 2.0\n", "classify has both clip_grad and max_grad_norm"),
        ("classify:\n  clip_grad: 1.0\n  modle: x\n", r"unknown key 'classify\.modle'"),
        ("classify: [1", "params.yaml"),
        ("- a\n", "expected a mapping"),
    ],
)
def test_a_file_that_cannot_be_converted_stays(tmp_path, capsys, text, message):
    """A key by both names, another mistake, and text that is no configuration: exit code 2, and the file is as it was."""
    (params := tmp_path / "params.yaml").write_text(text)
    assert main(["config", "convert", "--params", str(params)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert params.read_text() == text


def test_convert_needs_a_file(tmp_path, monkeypatch, capsys):
    """Without a params.yaml, or with overrides, there is nothing to rewrite."""
    monkeypatch.chdir(tmp_path)
    assert main(["config", "convert"]) == 2
    assert "give --params FILE" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "old", "new"), [(c, old, new) for c, flags in FLAGS.items() for old, new in flags.items()])
@pytest.mark.parametrize("form", ["{} x", "{}=x"])
def test_an_old_flag_names_the_new_one(capsys, command, old, new, form):
    """Protects scripts of an earlier version from a bare usage message; the new flag exists."""
    with pytest.raises(SystemExit) as caught:
        main([command, "some", *form.format(old).split()])
    assert caught.value.code == 2
    assert f"{old} is now {new}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([command, "--help"])
    listed = capsys.readouterr().out
    assert new in listed
    assert old not in listed


def test_the_changelog_lists_every_renaming():
    """The table of the changelog is the table of the code."""
    page = (ROOT / "CHANGELOG.md").read_text()
    for section, keys in KEYS.items():
        for old, new in keys.items():
            assert f"| `{section}.{old}` | `{section}.{new}` |" in page
    for command, flags in FLAGS.items():
        for old, new in flags.items():
            assert f"| `gda {command} {old}` | `gda {command} {new}` |" in page
    for section, fields in VALUES.items():
        for key, words in fields.items():
            for old, new in words.items():
                assert f"| `{section}.{key}: {old}` | `{section}.{key}: {new}` |" in page
