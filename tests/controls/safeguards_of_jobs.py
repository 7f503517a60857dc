"""Rows 27 to 30 of docs/reliability.md: steps, resuming, workers, the gate."""

from control import Control

JOBS: tuple[Control, ...] = (
    Control(
        row=28,
        what="a finished output taken for whatever is asked",
        file="gda/io/publish.py",
        edits=(("        changes = read_recipe(out).difference(recipe)", "        changes = []"),),
        tests=("tests/unit/io/test_publish.py::test_other_recipe_is_refused_with_the_difference",),
    ),
)  # fmt: skip
