"""Rows 12 to 23 of docs/reliability.md: what images, sets, labels and models may be."""

from control import Control

DATA: tuple[Control, ...] = (
    Control(
        row=23,
        what="names of tar members taken as they are",
        file="gda/io/shards.py",
        edits=(('    if path.is_absolute() or ".." in path.parts or', "    if False and path.is_absolute() or"),),
        tests=("tests/unit/io/test_shards.py::test_names_that_leave_the_archive",),
    ),
)  # fmt: skip
