"""Rows 27 to 30 of docs/reliability.md: steps, resuming, workers, the gate."""

from control import Control

_GRAPH, _STEP, _GATE = "gda/steps/graph.py", "gda/steps/step.py", "gda/registry/gate.py"
_TEST_GRAPH, _TEST_COMPONENTS = "tests/unit/steps/test_step_graph.py", "tests/flow/test_components.py"
_NULLS = "tests/faults/test_null_promotions.py"

JOBS: tuple[Control, ...] = (
    Control(
        row=27,
        what="a key of paths in place of digests",
        file=_GRAPH,
        edits=(("sorted(reference.digest for reference in given)", "sorted(reference.uri for reference in given)"),),
        tests=(
            f"{_TEST_GRAPH}::test_a_key_changes_with_what_decides_the_output_and_with_nothing_else",
            f"{_TEST_GRAPH}::test_where_it_lies_is_not_in_the_key",
        ),
    ),
    Control(
        row=27,
        what="a key without settings and code",
        file=_GRAPH,
        edits=(('"settings": json.loads(self.settings), "inputs": digests, "code": self.code}', '"inputs": digests}'),),
        tests=(f"{_TEST_GRAPH}::test_a_key_changes_with_what_decides_the_output_and_with_nothing_else",),
    ),
    Control(
        row=27,
        what="inputs of other content taken",
        file=_STEP,
        edits=(("    if found != reference.digest:\n", "    if False:\n"),),
        tests=(f"{_TEST_COMPONENTS}::test_an_input_that_changed_is_refused",),
    ),
    Control(
        row=27,
        what="a finished step run again",
        file=_STEP,
        edits=(
            (
                "    if (done := finished(folder)) is not None and request.",
                "    if False and (done := finished(folder)) is not None and request.",
            ),
        ),
        tests=(f"{_TEST_COMPONENTS}::test_a_finished_step_is_found_again",),
    ),
    Control(
        row=27,
        what="settings without the content of what they name outside the job",
        file="gda/steps/graph.py",
        edits=(("        chosen[_OUTSIDE] = watched\n", "        pass\n"),),
        tests=("tests/unit/steps/test_step_graph.py::test_a_key_changes_with_what_its_fields_name_outside_the_job",),
    ),
    Control(
        row=28,
        what="a finished output taken for any request",
        file="gda/io/up_to_date.py",
        edits=(("        changes = read_fingerprint(out).difference(fingerprint)", "        changes = []"),),
        tests=("tests/unit/io/test_publish.py::test_other_fingerprint_is_refused_with_the_difference",),
    ),
    Control(
        row=28,
        what="a fine-tuning resumed from whatever is named",
        file="gda/stages/finetune.py",
        edits=(("    changes = read_fingerprint(root).difference(workspace.fingerprint)\n", "    changes = []\n"),),
        tests=("tests/unit/stages/test_finetune.py::test_resume_of_another_fingerprint_is_refused_with_the_difference",),
    ),
    Control(
        row=28,
        what="workers of two plans at one set",
        file="gda/io/publish.py",
        edits=(("        if earlier != workspace.fingerprint and any(", "        if False and any("),),
        tests=("tests/faults/test_sample_faults.py::test_a_plan_that_changed_under_half_a_set",),
    ),
    Control(
        row=28,
        what="a classifier's checkpoint of whatever work",
        file="gda/training/loop/checkpoint.py",
        edits=(("        if found != identity:\n", "        if False:\n"),),
        tests=("tests/unit/training/test_classifier.py::test_a_checkpoint_of_other_work_is_refused",),
    ),
    Control(
        row=28,
        what="a snapshot's fingerprint without its images",
        file="gda/stages/snapshot.py",
        edits=(('inputs={"source": source.content_digest} | words', "inputs=words"),),
        tests=("tests/unit/data/test_snapshot_stage.py::test_finished_output_is_reused",),
    ),
    Control(
        row=28,
        what="files of others replaced",
        file="gda/io/replacing.py",
        edits=(("- {FINGERPRINT_FILE}):", "- {RECIPE_FILE}) and False:"),),
        tests=("tests/unit/io/test_replacing.py::test_what_this_program_did_not_make_stays",),
    ),
    Control(
        row=28,
        what="damaged results replaced",
        file="gda/io/replacing.py",
        edits=(('        contents.require_whole(folder, advice=f"remove {folder} and run the same command")\n', ""),),
        tests=("tests/unit/io/test_replacing.py::test_what_this_program_did_not_make_stays",),
    ),
    Control(
        row=28,
        what="results of any arm or seed replaced",
        file="gda/io/replacing.py",
        edits=(("            if found.get(name) != value:\n", "            if False:\n"),),
        tests=("tests/unit/io/test_replacing.py::test_what_this_program_did_not_make_stays",),
    ),
    Control(
        row=28,
        what="a folder that is not looked at again before it is moved",
        file="gda/io/replacing.py",
        edits=(("            self.require(folder)\n", ""),),
        tests=("tests/unit/io/test_replacing.py::test_what_comes_in_while_the_new_one_is_made_stays",),
    ),
    Control(
        row=28,
        what="an old result taken away before the new one is complete",
        file="gda/io/replacing.py",
        edits=(
            (
                "    if workspace.finished or not _take_back(workspace, own):\n",
                "    if not workspace.finished:\n        own.remove(out)\n    if workspace.finished or not _take_back(workspace, own):\n",
            ),
        ),
        tests=("tests/unit/io/test_replacing.py::test_killed_anywhere_leaves_the_old_one_or_the_new_one",),
    ),
    Control(
        row=28,
        what="an old result that is not put back",
        file="gda/io/replacing.py",
        edits=(("                    if aside.exists() and not folder.exists():\n", "                    if False:\n"),),
        tests=("tests/unit/io/test_replacing.py::test_a_failure_at_the_last_rename_puts_the_old_one_back",),
    ),
    Control(
        row=28,
        what="a kept result that is believed",
        file="gda/io/replacing.py",
        edits=((" and not contents.damaged_files(folder):", ":"),),
        tests=("tests/unit/io/test_replacing.py::test_what_was_kept_and_is_damaged_is_made_again",),
    ),
    Control(
        row=28,
        what="seeds that are looked at one by one, each before it is trained",
        file="gda/stages/classify.py",
        edits=(("        _own(arm, seed).require(path)\n", ""),),
        tests=("tests/unit/stages/test_classify_replace.py::test_files_of_others_stay",),
    ),
    Control(
        row=29,
        what="noise of the process in place of the image's own seed",
        file="gda/generator/sampling/sample_shards.py",
        edits=(("[image.seed for image in batch]", "torch.randint(2**62, (len(batch),)).tolist()"),),
        tests=("tests/unit/stages/test_sample.py::test_any_number_of_workers_gives_the_same_set",),
    ),
    Control(
        row=30,
        what="an interval over seeds alone",
        file="gda/stats/gain.py",
        edits=(("            error=estimate.error,\n", "            error=estimate.error * estimate.seed_share**0.5,\n"),),
        tests=(f"{_NULLS}::test_a_set_without_effect_is_promoted_at_most_alpha_of_the_time",),
    ),
    Control(
        row=30,
        what="a gate that looks at p alone",
        file=_GATE,
        edits=(("    if not 0.0 < low <= gain.mean <= high:\n", "    if False:\n"),),
        tests=(f"{_NULLS}::test_a_set_without_effect_is_promoted_at_most_alpha_of_the_time",),
    ),
    Control(
        row=30,
        what="a gate that looks at neither interval nor p",
        file=_GATE,
        edits=(
            ("    if not 0.0 < low <= gain.mean <= high:\n", "    if False:\n"),
            ("    if not gain.p_value <= level:\n", "    if False:\n"),
        ),
        tests=(f"{_NULLS}::test_a_set_without_effect_is_promoted_at_most_alpha_of_the_time",),
    ),
    Control(
        row=30,
        what="a gate that never opens",
        file=_GATE,
        edits=(("promoted=not reasons,", "promoted=False,"),),
        tests=(f"{_NULLS}::test_a_real_effect_is_promoted_most_of_the_time",),
    ),
)
