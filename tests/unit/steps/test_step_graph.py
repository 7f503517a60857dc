"""Steps that run by themselves: what they read, which settings they see, their commands and keys."""

import json
from pathlib import Path

import pytest

from gda.cli.stage_commands import build_parser
from gda.config.arm import ARMS
from gda.config.load import Config, parse_config
from gda.errors import DataError, UsageError
from gda.flow import CLASSIFIERS, GRAPH, dvc_command
from gda.steps.form import step_settings
from gda.steps.graph import (
    NODES,
    Reference,
    StepRequest,
    argv,
    config_of,
    make_step_request,
    node_of,
    output_paths,
    parse_reference,
    producer,
    roles,
    settings_of,
)


def _ref(name: str, digest: str = "d") -> Reference:
    return Reference(uri=f"/vol/{name}", digest=digest)


def _request(name: str, config: Config | None = None, *, code: str = "1", digest: str = "d", **item: str) -> StepRequest:
    node = node_of(name, item)
    inputs = {role: (_ref(role, digest),) for role in roles(node, item)}
    return make_step_request(name, inputs=inputs, settings=settings_of(config or Config(), node), code=code, item=item)


def _requests() -> list[StepRequest]:
    named = [_request(node.name) for node in GRAPH if not node.matrix]
    return named + [_request("classify", arm=str(arm), seed="3") for arm in ARMS]


@pytest.mark.parametrize("request_", _requests(), ids=lambda request: request.name)
def test_every_step_has_a_command_that_parses(request_: StepRequest) -> None:
    """Each node's own command, with a step's paths in it, is one that the command line accepts; no template and no flow path is left."""
    words = argv(request_, Path("/out"))
    args = build_parser().parse_args(words)
    assert args.command == request_.node.stage
    assert args.out == Path("/out") / output_paths(request_)[0]
    assert not [word for word in words if "${" in word or word.startswith(("data/", "models/", "reports/"))]
    for role in roles(request_.node, request_.item):
        assert any(word.startswith(f"/vol/{role}") for word in words) or role == "reference"


def test_the_command_is_the_flows_but_for_the_paths() -> None:
    """A step runs what `dvc repro` runs: the same words in the same order."""
    request = _request("validate")
    expected = dvc_command(request.node).split()[1:]
    mapped = dict(zip(expected, argv(request, Path("/out")), strict=True))
    assert {old for old, new in mapped.items() if old == new} == {word for word in expected if word.startswith("--") or word == "validate"}
    assert mapped["data/accepted"] == "/out/data/accepted"
    assert mapped["models/generator"] == "/vol/generator"


def test_files_within_an_output_are_found_there() -> None:
    """The settings of sampling are a file in tune's output, the verdict one in validate's."""
    assert "/vol/settings/settings.json" in argv(_request("sample"), Path("/out"))
    assert "/vol/verdict/verdict.json" in argv(_request("classify", arm="synthetic", seed="0"), Path("/out"))


def test_every_input_is_some_steps_output() -> None:
    """Nothing in the graph is read that no step writes."""
    for node in GRAPH:
        if not node.matrix:
            for path in node.inputs.values():
                name, output = producer(path)
                assert name in NODES
                assert path.startswith(output)
    assert producer(CLASSIFIERS) == ("classify", CLASSIFIERS)


def test_several_classifiers_are_named_one_by_one() -> None:
    """`--runs` is repeated for each, in the order given."""
    node = NODES["evaluate"]
    inputs = {role: (_ref(role),) for role in roles(node, {})} | {"runs": (_ref("a"), _ref("b"))}
    request = make_step_request("evaluate", inputs=inputs, settings=settings_of(Config(), node), code="1", item={})
    words = argv(request, Path("/out"))
    assert [words[i + 1] for i, word in enumerate(words) if word == "--runs"] == ["/vol/a", "/vol/b"]


def test_a_key_changes_with_what_decides_the_output_and_with_nothing_else() -> None:
    """Sections of other steps, and the order of classifiers, are none of its business; its own, inputs and code are."""
    key = _request("finetune").key
    assert _request("finetune", parse_config({"promote": {"alpha": 0.01}}, where="t")).key == key
    assert _request("finetune", parse_config({"finetune": {"num_train_steps": 7}}, where="t")).key != key
    assert _request("finetune", code="2").key != key
    assert _request("finetune", digest="e").key != key
    node = NODES["evaluate"]
    rest = {role: (_ref(role),) for role in roles(node, {})}
    one, two = (
        make_step_request("evaluate", inputs=rest | {"runs": runs}, settings=settings_of(Config(), node), code="1", item={}).key
        for runs in ((_ref("a", "x"), _ref("b", "y")), (_ref("b", "y"), _ref("a", "x")))
    )
    assert one == two
    assert _request("classify", arm="real", seed="0").key != _request("classify", arm="real", seed="1").key


def test_a_key_changes_with_what_its_fields_name_outside_the_job() -> None:
    """Other images under the same path are other work, for the step that reads them alone; the configuration stays what it was."""
    outside = {
        "source": {"snapshot.source": {"name": "/images", "digest": "a"}},
        "base": {"finetune.base": {"name": "/base", "digest": "b"}},
    }
    other = outside | {"source": {"snapshot.source": {"name": "/images", "digest": "c"}}}
    settings, changed = step_settings(Config(), outside), step_settings(Config(), other)
    assert {name for name in settings if settings[name] != changed[name]} == {"snapshot"}
    made = [make_step_request("snapshot", inputs={}, settings=settings["snapshot"], code="1", item={}) for settings in (settings, changed)]
    assert made[0].key != made[1].key
    assert argv(made[0], Path("/out")) == argv(made[1], Path("/out"))
    assert config_of(settings["snapshot"]) == config_of(step_settings(Config())["snapshot"])
    based = [name for name, settings in settings.items() if "finetune.base" in settings.split('"outside"')[-1]]
    assert sorted(based) == ["finetune", "sample_zero_shot", "tune_zero_shot"]


def test_where_it_lies_is_not_in_the_key() -> None:
    """The same content at another path is the same work."""
    node = NODES["finetune"]
    here, there = (
        make_step_request("finetune", inputs={"snapshot": (ref,)}, settings=settings_of(Config(), node), code="1", item={})
        for ref in (Reference(uri="/a", digest="d"), Reference(uri="/b", digest="d"))
    )
    assert here.key == there.key


def test_settings_hold_the_nodes_sections_alone() -> None:
    """A step is given its own sections, whole or by the field, and reads from them what the whole says."""
    config = parse_config({"seed": 5, "validate": {"image_size": 32, "fid_max_ratio": 3}, "finetune": {"jitter": 0.1}}, where="t")
    settings = json.loads(settings_of(config, NODES["finetune"]))
    assert set(settings) == {"seed", "finetune", "validate"}
    assert set(settings["validate"]) == {"extractor", "extractor_weights"}
    seen = config_of(json.dumps(settings))
    assert (seen.seed, seen.finetune.jitter) == (5, 0.1)
    assert config_of(settings_of(config, NODES["validate"])).validate_ == config.validate_


def test_arms_without_the_declared_one_are_read() -> None:
    """A step that is given the arms but not the declared one reads its sections all the same."""
    config = parse_config({"classify": {"arms": ["real", "zero_shot"]}, "promote": {"arm": "zero_shot"}}, where="t")
    assert config_of(settings_of(config, node_of("classify", {"arm": "real", "seed": "0"}))).classify == config.classify


def test_arms_are_read_without_how_they_are_trained() -> None:
    """A step that only requests which arms are compared reads its sections all the same, and does not run again for another training."""
    content = {"classify": {"arms": ["real", "real+synthetic", "real_vit"], "trainings": {"vit": {"model": "test_vit"}}}}
    config = parse_config(content, where="t")
    settings = step_settings(config)
    for name in ("snapshot_pool", "sample_img2img", "evaluate"):
        assert config_of(settings[name]).classify.arms == config.classify.arms
    assert config_of(settings["classify"]).classify == config.classify
    content["classify"]["trainings"] = {"vit": {"model": "test_resnet"}}
    changed = step_settings(parse_config(content, where="t"))
    again = {name for name in settings if settings[name] != changed[name]}
    assert "classify" in again
    assert not again & {"snapshot_pool", "sample_img2img", "evaluate", "finetune"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _request("fine"), "fine: no step of the job; accepted: snapshot"),
        (lambda: _request("classify", arm="rael", seed="0"), "no such arm 'rael'; accepted: real, retrieved"),
        (lambda: _request("classify", arm="real", seed="x"), "seed 'x'"),
        (lambda: _request("classify", arm="real", seed="²"), "seed '²'"),
        (
            lambda: make_step_request("finetune", inputs={}, settings="{}", code="1", item={}),
            "finetune: no reference for snapshot; given: none",
        ),
        (lambda: parse_reference("1/2", role="snapshot"), "snapshot: '1/2' is no reference"),
        (lambda: config_of("{"), "settings: not valid JSON"),
    ],
)
def test_what_is_no_step_is_refused(call, message) -> None:
    """One line names what was given and what is accepted."""
    with pytest.raises(UsageError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://bucket/real", "data/real"])
def test_references_are_absolute_paths(uri: str) -> None:
    """What is not on the shared volume is refused by name rather than looked for in the working directory."""
    with pytest.raises(DataError, match="accepted: an absolute path on a volume"):
        _ = Reference(uri=uri, digest="d").path
    assert Reference(uri="file:///data/x", digest="d").path == Path("/data/x")
