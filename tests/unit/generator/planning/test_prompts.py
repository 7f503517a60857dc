"""Class prompts: what the template and the file make of class names, and whether real text encoders can tell the result apart."""

import json
import math

import pytest
import torch
from tiny_pipelines import build_tiny_pipeline

from gda.artifacts.snapshot import ClassInfo
from gda.config.sections import FinetuneConfig
from gda.data.store.classes import make_classes
from gda.errors import ConfigError, DataError
from gda.generator.families.opening import load_model
from gda.generator.planning.prompts import class_prompts, cut_prompts, find_collisions, require_distinct

KINDS = ("sd1", "sdxl", "sd3", "cascade")
BIRDS = make_classes(["crane_bird", "crane_machine", "heron"])
PHOTO = "a photo of a {class_name}"


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    paths = {kind: build_tiny_pipeline(kind, root / kind) for kind in KINDS if kind != "cascade"} | {"cascade": tiny}
    return {kind: load_model(str(path)) for kind, path in paths.items()}


@pytest.fixture
def prompts_of(tmp_path):
    """Prompts of `classes` by a prompt file of that content."""

    def query(classes, content, *, name="prompts.yaml", template=PHOTO):
        path = tmp_path / name
        path.write_text(content, "utf-8")
        return class_prompts(classes, FinetuneConfig(prompt_template=template, prompt_file=str(path)))

    return query


def _named(*names):
    return {name: name for name in names}


def _pairs(collisions):
    return [(pair.a, pair.b) for pair in collisions]


def test_the_template_says_the_prompt_name_of_every_class():
    """Without a file each class is its folder's name in words, in the classes' order, and braces in a name are no placeholder."""
    classes = (*make_classes(["hot_dog", "cat"]), ClassInfo(name="odd", prompt_name="{class_name}"))
    prompts = class_prompts(classes, FinetuneConfig(prompt_template="{class_name}, a {class_name}"))
    assert list(prompts.items()) == [("cat", "cat, a cat"), ("hot_dog", "hot dog, a hot dog"), ("odd", "{class_name}, a {class_name}")]


def test_a_template_without_the_class_is_refused():
    """It would give every class one prompt; the message names field, value and what is accepted."""
    with pytest.raises(ConfigError, match=r"finetune\.prompt_template: must contain \{class_name\}, got 'a photo'"):
        class_prompts(BIRDS, FinetuneConfig(prompt_template="a photo"))


def test_prompts_that_differ_in_case_or_outer_spaces_are_refused():
    """IF lowers and strips prompts, so such classes would be one; a snapshot's own check may be older or another's."""
    for twin in ("CAT", " cat "):
        classes = (ClassInfo(name="cat", prompt_name="cat"), ClassInfo(name="b", prompt_name=twin))
        with pytest.raises(ConfigError, match=r"finetune\.prompt_template: classes 'cat' and 'b' share the prompt"):
            class_prompts(classes, FinetuneConfig())


def test_names_from_narrow_to_broad_grow_only_where_classes_share_them(prompts_of):
    """Two cranes are distinguished by their next name, a heron stays a heron, and further names stay unsaid."""
    prompts = prompts_of(BIRDS, "crane_bird: [crane, bird, animal]\ncrane_machine: [Crane, machine]\nheron: [heron, bird]\n")
    assert prompts == {
        "crane_bird": "a photo of a crane, bird",
        "crane_machine": "a photo of a Crane, machine",
        "heron": "a photo of a heron",
    }


def test_three_classes_may_need_names_of_different_length(prompts_of):
    """A name shared on two levels takes a third, only for the classes that share the second."""
    classes = make_classes(["a", "b", "c", "d"])
    prompts = prompts_of(classes, "a: [x, y, p]\nb: [x, y, q]\nc: [x, z, r]\n", template="{class_name}")
    assert prompts == {"a": "x, y, p", "b": "x, y, q", "c": "x, z", "d": "d"}


def test_a_class_that_the_file_leaves_out_counts_with_its_own_name(prompts_of):
    """The class crane is called crane, so the bird of that name says more, though it stands alone in the file."""
    prompts = prompts_of(make_classes(["crane", "crane_bird", "crane_machine"]), "crane_bird: [crane, bird]\n", template="{class_name}")
    assert prompts == {"crane": "crane", "crane_bird": "crane, bird", "crane_machine": "crane machine"}


def test_a_whole_prompt_passes_the_template_by(prompts_of):
    """A string is reported as it is, outer and repeated spaces and folded lines aside, and shares no names with others."""
    prompts = prompts_of(BIRDS, "crane_bird: >\n  a tall  grey bird\n  on a lake\ncrane_machine: [crane, machine]\n")
    assert prompts["crane_bird"] == "a tall grey bird on a lake"
    assert prompts["crane_machine"] == "a photo of a crane"


def test_names_that_cannot_be_made_unique_are_refused(prompts_of):
    """A list that is the start of another's, in whatever case, would leave the reader guessing which is meant."""
    pattern = r"prompts\.yaml: class 'crane_bird': all its names, 'crane, bird', also begin those of class 'crane_machine'; accepted"
    with pytest.raises(ConfigError, match=pattern):
        prompts_of(BIRDS, "crane_bird: [crane, bird]\ncrane_machine: [crane, Bird, metal]\n")
    with pytest.raises(ConfigError, match=r"class 'crane_bird': all its names, 'heron', also begin those of class 'heron'"):
        prompts_of(BIRDS, "crane_bird: [heron]\n")


def test_whole_prompts_that_two_classes_share_are_refused(prompts_of):
    """Between two entries, and between an entry and what the template makes; the file is named."""
    with pytest.raises(ConfigError, match=r"prompts\.yaml: classes 'crane_bird' and 'crane_machine' share the prompt 'A crane'"):
        prompts_of(BIRDS, "crane_bird: a crane\ncrane_machine: A crane\n")
    with pytest.raises(ConfigError, match=r"classes 'crane_bird' and 'heron' share the prompt 'a photo of a heron'"):
        prompts_of(BIRDS, "crane_bird: a photo of a Heron\n")


def test_a_key_that_is_no_class_is_refused_with_the_nearest_or_a_few_known(prompts_of):
    """A typing error must not quietly leave a class as it was; a thousand classes do not fill the screen."""
    with pytest.raises(ConfigError, match=r"prompts\.yaml: 'crane_brid' is no class; did you mean 'crane_bird'\?"):
        prompts_of(BIRDS, "crane_brid: [crane, bird]\n")
    many = make_classes(f"c{number:03}" for number in range(1000))
    with pytest.raises(ConfigError, match=r"'submarine' is no class; the classes are 'c000', 'c001', .*'c009' and 990 more classes$"):
        prompts_of(many, "submarine: a boat\n")


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("''", "''"),
        ("'  '", "'  '"),
        ("[crane, '']", "''"),
        ("[]", "an empty list"),
        ("", "nothing"),
        ("7", "int 7"),
        ("[crane, 7]", "int 7"),
        ("[crane, [bird]]", r"list \['bird'\]"),
        ("{a: b}", "dict"),
        ("true", "bool True"),
        ("a photo of a {class_name}", "'a photo of a {class_name}'"),
        (r'"\ud83e"', "half a character"),
    ],
)
def test_an_entry_that_says_nothing_or_is_no_text_is_refused(prompts_of, entry, found):
    """File, class and what is accepted are named; nothing is turned into text by itself."""
    with pytest.raises(ConfigError, match=rf"prompts\.yaml: class 'heron': .*{found}.*accepted: a prompt, or a list of names"):
        prompts_of(BIRDS, f"heron: {entry}\n")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.yaml", "", "expected a mapping of class name to prompt, found nothing"),
        ("p.yaml", "- heron\n", "expected a mapping of class name to prompt, found list"),
        ("p.yaml", "heron: 'x\n", r"not valid YAML in UTF-8 \(line \d: "),
        ("p.yaml", "heron: x\nheron: y\n", r"not valid YAML in UTF-8 \(line 2: found duplicate key \"heron\""),
        ("p.yaml", "heron: x\n---\nheron: y\n", "not valid YAML"),
        ("p.yaml", "heron: \x07\n", r"not valid YAML in UTF-8 \(unacceptable character"),
        ("p.json", "heron: x\n", r"not valid JSON in UTF-8 \(Expecting"),
        ("p.JSON", '{"heron": "x", "heron": "y"}', r"not valid JSON in UTF-8 \(key 'heron' twice"),
        ("p.json", "[" * 100_000, "not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_understood_is_one_clear_line(prompts_of, name, content, reason):
    """Wrong syntax, repeated keys, several documents and another shape are named with the file."""
    with pytest.raises(ConfigError, match=rf"^finetune\.prompt_file .*{name}: {reason}") as caught:
        prompts_of(BIRDS, content, name=name)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path):
    """A missing file, a folder and bytes that are no UTF-8 are given with the field and the path."""
    (tmp_path / "latin.yaml").write_bytes("heron: réal\n".encode("latin-1"))
    for name, reason in (("none.yaml", "cannot be read"), ("", "cannot be read"), ("latin.yaml", "not valid YAML in UTF-8")):
        with pytest.raises(ConfigError, match=rf"finetune\.prompt_file .*{name}: {reason}"):
            class_prompts(BIRDS, FinetuneConfig(prompt_file=str(tmp_path / name)))


def test_json_and_yaml_say_the_same(prompts_of):
    """JSON is read as JSON: its escapes of letters beyond the basic plane are two halves, which YAML would take for letters."""
    content = {"crane_bird": ["crane", "🦩"], "crane_machine": ["crane", "machine"], "heron": "réal"}
    text = json.dumps(content, indent="\t")
    assert "\\ud83e" in text
    as_json = prompts_of(BIRDS, "\ufeff" + text, name="prompts.json")
    assert as_json == prompts_of(BIRDS, json.dumps(content, ensure_ascii=False))
    assert as_json["crane_bird"] == "a photo of a crane, 🦩"


def test_keys_are_text_as_it_is_written(prompts_of):
    """Classes may be called 007, 1e3, null or 2020-01-01, and an accent may be typed in either unicode form."""
    names = ["007", "1e3", "null", "2020-01-01", "café"]
    prompts = prompts_of(make_classes(names), "007: a\n1e3: b\nnull: c\n2020-01-01: d\ncafe\u0301: e\n")
    assert prompts == {"007": "a", "1e3": "b", "null": "c", "2020-01-01": "d", "café": "e"}


def test_the_two_unicode_forms_of_one_class_are_named_twice(prompts_of):
    """The second must not quietly replace the first."""
    with pytest.raises(ConfigError, match="class 'café' is named twice"):
        prompts_of(make_classes(["café"]), "caf\u00e9: a\ncafe\u0301: b\n")


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_the_encoder_does_not_know_collide(models, kind):
    """Two Chinese names of one length are the same unknown tokens to these encoders; plain words, and another length, are not."""
    prompts = {"crane": "a photo of 鹤", "bird": "a photo of 鸟", "heron": "a photo of heron", "gull": "a photo of a gull"}
    assert [(p.a, p.b, p.similarity, p.identical) for p in find_collisions(models[kind], prompts, threshold=0.95)] == [
        ("crane", "bird", 1.0, True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_person_distinguishes_easily_is_not_reported(models, kind):
    """Padding, template and start tokens that all prompts share are no similarity, whatever the number of classes."""
    for names in (["heron", "crane"], ["ab", "ba", "abc"], [str(digit) for digit in range(10)]):
        prompts = {name: f"a photo of a {name}, outdoors" for name in names}
        assert find_collisions(models[kind], prompts, threshold=0.95) == []


def test_shared_tokens_would_hide_the_difference_from_a_plain_cosine(models):
    """Why the distance is a relative one: the cosine of all states calls these two nearly the same, but a fifth of all is between them."""
    states = models["cascade"].encode(["ab", "ba"])["states"].flatten(1)
    assert float(torch.cosine_similarity(states[0], states[1], dim=0)) > 0.97
    (pair,) = find_collisions(models["cascade"], _named("ab", "ba"), threshold=0.0)
    assert 0.7 < pair.similarity < 0.85


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_cut_at_the_token_limit_collide_unless_another_encoder_reads_on(models, kind):
    """What shows these two apart is beyond CLIP's and IF's 77 tokens; SD3's T5 reads 256 of them, and finds them nearly the same."""
    prompts = {"a": "x" * 90 + "a", "b": "x" * 90 + "b", "other": "y"}
    (pair,) = find_collisions(models[kind], prompts, threshold=0.95)
    assert (pair.a, pair.b, pair.identical) == ("a", "b", kind != "sd3")
    assert 0.95 <= pair.similarity <= 1.0
    assert cut_prompts(models[kind], prompts) == ([] if kind == "sd3" else ["a", "b"])


@pytest.mark.parametrize(("kind", "token", "fits"), [("sd1", "x ", 75), ("sdxl", "x ", 75), ("sd3", "x", 254), ("cascade", "x", 75)])
def test_a_prompt_is_cut_exactly_where_the_encoder_stops(models, kind, token, fits):
    """The longest prompt that fits is whole, one token more is not, whatever spaces follow."""
    prompts = {"short": "x", "fits": token * fits, "spaces": token * fits + "  ", "cut": token * (fits + 1)}
    assert cut_prompts(models[kind], prompts) == ["cut"]


def test_an_end_that_says_nothing_new_is_not_cut(models):
    """Unknown letters are one token to T5 however many they are, so the loss of one changes nothing, but another word still does."""
    assert cut_prompts(models["cascade"], {"unknown": "x" * 60 + "鹤" * 8}) == []


@pytest.mark.parametrize("kind", KINDS)
def test_all_classes_alike_are_all_reported(models, kind):
    """Where no two class prompts differ no distance between them is left to compare with; the one to the empty prompt is."""
    prompts = {f"c{number}": letter for number, letter in enumerate("鹤鸟鹰鸡鸭鹅鸽鹊")}
    found = find_collisions(models[kind], prompts, threshold=1.0)
    assert _pairs(found) == [(f"c{i}", f"c{j}") for i in range(8) for j in range(i + 1, 8)]
    assert all(pair.identical for pair in found)


def test_equal_prompts_of_different_batches_are_still_identical(models):
    """Batches may differ in the last bits of the same prompt; the first and the last of 200 classes are never encoded side by side."""
    prompts = {f"c{number}": f"class {number}" for number in range(200)} | {"c0": "class 鹤鹤鹤", "c199": "class 鸟鸟鸟"}
    assert [(p.a, p.b, p.identical) for p in find_collisions(models["cascade"], prompts, threshold=1.0)] == [("c0", "c199", True)]


class _Altered:
    """The real model with something done to what its encoder says."""

    def __init__(self, model, change):
        self.path, self._model, self._change = model.path, model, change

    def encode(self, prompts):
        return {role: self._change(prompts, states) for role, states in self._model.encode(prompts).items()}


def _on_a_line(model, place):
    """`model` with every state of a prompt at the prompt's place, in one feature; the others are 0."""

    def move(prompts, states):
        states = torch.zeros_like(states)
        states[:, 0, 0] = torch.tensor([place[prompt] for prompt in prompts])
        return states

    return _Altered(model, move)


def test_prompts_are_encoded_a_few_at_a_time(models):
    """A thousand prompts at once would not fit next to a large encoder; here more than 64 are more than memory holds."""

    def hold(prompts, states):
        if len(prompts) > 64:
            raise MemoryError
        return states

    prompts = _named(*(f"class {number}" for number in range(150)))
    assert find_collisions(_Altered(models["sd1"], hold), prompts, threshold=1.0) == []


def test_a_similarity_is_one_minus_the_distance_over_that_to_the_empty_prompt(models):
    """Points on a line whose distances are known: 0, 1, 10, 20 and the empty prompt at 50."""
    model = _on_a_line(models["cascade"], {"a": 0.0, "b": 1.0, "c": 10.0, "d": 20.0, " ": 50.0})
    found = find_collisions(model, _named("a", "b", "c", "d"), threshold=0.0)
    expected = {("a", "b"): 1, ("b", "c"): 9, ("a", "c"): 10, ("c", "d"): 10, ("b", "d"): 19, ("a", "d"): 20}
    assert {(p.a, p.b): p.similarity for p in found} == {pair: pytest.approx(1 - apart / 50) for pair, apart in expected.items()}
    assert [p.similarity for p in found] == sorted((p.similarity for p in found), reverse=True)
    assert _pairs(find_collisions(model, _named("a", "b", "c", "d"), threshold=0.81)) == [("a", "b"), ("b", "c")]


def test_a_small_difference_is_found_in_large_and_wide_states(models):
    """What all prompts share may be thousands of times what shows two apart, in any of a large encoder's hundred thousand features."""
    place = {"a": 0.0, "b": 1.0, " ": 50.0}

    def enlarge(prompts, states):
        wide = torch.full((len(prompts), 77, 400), 100.0)
        wide[:, -1, -1] += torch.tensor([place[prompt] for prompt in prompts])
        return wide

    (pair,) = find_collisions(_Altered(models["cascade"], enlarge), _named("a", "b"), threshold=0.0)
    assert pair.similarity == pytest.approx(0.98)


def test_a_pair_is_distinguished_by_whichever_role_does(models):
    """States that agree, or say nothing at all, do not outvote a pooled state that differs."""
    real = models["sdxl"]

    def deaf(prompts, states):
        return states * 0 if states.ndim == 3 else states

    assert find_collisions(_Altered(real, deaf), _named("heron", "crane", "gull"), threshold=0.95) == []
    silent = find_collisions(_Altered(real, lambda prompts, states: states * 0), _named("heron", "crane", "gull"), threshold=1.0)
    assert _pairs(silent) == [("heron", "crane"), ("heron", "gull"), ("crane", "gull")]


def test_states_that_are_not_finite_are_damage_not_difference(models):
    """Comparisons with NaN are all false, so a broken encoder would otherwise pass as one that shows everything apart."""
    with pytest.raises(DataError, match=r"text encoder's states are not finite; its weights are damaged"):
        find_collisions(_Altered(models["sd1"], lambda prompts, states: states * math.nan), _named("a", "b"), threshold=0.9)


def test_one_class_or_none_collides_with_nothing(models):
    """Pairs need two."""
    assert find_collisions(models["sd1"], {}, threshold=0.5) == find_collisions(models["sd1"], _named("a"), threshold=0.5) == []
    assert cut_prompts(models["sd1"], {}) == []


def test_clear_prompts_pass_without_a_word(models):
    """No notes where there is nothing to say: the built-in run's ten digits on the built-in base, and words on every family."""
    assert require_distinct(load_model("demo://glyphs"), _named(*map(str, range(10)))) == []
    for model in models.values():
        assert require_distinct(model, {name: f"a photo of a {name}" for name in ("heron", "crane", "gull")}) == []


def test_identical_pairs_are_refused_with_the_way_out(models):
    """The first ten pairs are named and the rest counted, and the message says what to do."""
    with pytest.raises(ConfigError) as caught:
        require_distinct(models["sd1"], {f"c{number}": letter for number, letter in enumerate("鹤鸟鹰鸡鸭鹅鸽鹊")})
    message = str(caught.value)
    assert "cannot tell apart the prompts of 'c0' and 'c1', " in message
    assert message.count(" and 'c") == 10
    assert "and 18 more pairs; " in message
    assert "finetune.prompt_file" in message
    assert "finetune.method: textual_inversion" in message


def test_near_pairs_and_cut_prompts_are_notes(models):
    """They are allowed, so they are reported: SD3's T5 hears the difference of two long prompts, faintly; IF does not hear an end."""
    (note,) = require_distinct(models["sd3"], {"a": "x" * 90 + "a", "b": "x" * 90 + "b", "other": "y"})
    assert note.startswith("prompts of 'a' and 'b' are nearly the same to the text encoder (0.0")
    assert note.endswith(" of the distance to the empty prompt)")
    (note,) = require_distinct(models["cascade"], {"long": "x" * 100, "other": "y", "third": "z"})
    assert note == "the end of the prompts of 'long' is beyond what the text encoder reads"


def test_many_near_pairs_are_counted(models):
    """Hundreds of part numbers do not fill the report, though no other class stands out: ten notes, nearest first, and a count."""
    model = _on_a_line(models["cascade"], {f"p{number}": number**2 / 1000 for number in range(6)} | {" ": 1.0})
    notes = require_distinct(model, _named(*(f"p{number}" for number in range(6))))
    assert notes[0].startswith("prompts of 'p0' and 'p1' are nearly the same to the text encoder (0.001 of")
    assert len(notes) == 11
    assert notes[-1] == "5 more pairs of prompts are nearly the same to the text encoder"
