"""Rows 1 to 8 of docs/reliability.md: kills, races, damaged files, clocks."""

from control import Control

_PUBLISH, _SHARDS, _PARALLEL = "gda/io/publish.py", "gda/io/shards.py", "gda/runtime/parallel.py"
_SAMPLING, _SAMPLE = "gda/generator/sampling/sample_shards.py", "gda/stages/sample.py"
_SNAPSHOT, _VERIFY, _IN_MEMORY = "gda/data/store/snapshot.py", "gda/data/store/verify.py", "gda/data/store/in_memory.py"
_WATCHING = "gda/cluster/watching.py"

_SAMPLE_KILL, _SAMPLE_FAULTS = "tests/faults/test_sample_kill.py", "tests/faults/test_sample_faults.py"
_IO_KILL, _IO_DAMAGE = "tests/faults/test_io_kill.py", "tests/faults/test_io_damage.py"
_TEST_PUBLISH, _TEST_SHARDS = "tests/unit/io/test_publish.py", "tests/unit/io/test_shards.py"
_TEST_READING, _TEST_SOURCES = "tests/unit/data/test_reading.py", "tests/unit/data/test_sources.py"
_TEST_WATCHING = "tests/unit/cluster/test_job_watching.py"

STATE: tuple[Control, ...] = (
    Control(
        row=1,
        what="a folder published file by file",
        file=_PUBLISH,
        edits=(
            (
                "        os.rename(staging, out)  #",
                "        out.mkdir(exist_ok=True)\n"
                "        for path in sorted(staging.iterdir()):\n"
                "            os.rename(path, out / path.name)  #",
            ),
        ),
        tests=(f"{_IO_KILL}::test_snapshot_killed_anywhere",),
    ),
    Control(
        row=1,
        what="finished shards sampled again",
        file=_SAMPLING,
        edits=(("    if job.rows() is not None:\n", "    if False:\n"),),
        tests=(f"{_SAMPLE_KILL}::test_killed_at_every_call",),
    ),
    Control(
        row=1,
        what="workers that do not end with their parent",
        file=_PARALLEL,
        edits=(("    _end_with(parent)\n", ""),),
        tests=(f"{_SAMPLE_KILL}::test_no_process_outlives_the_command",),
    ),
    Control(
        row=2,
        what="SIGTERM left to the system",
        file="gda/runtime/interruption.py",
        edits=(("        signal.signal(signal.SIGTERM, _interrupt)\n", ""),),
        tests=(f"{_SAMPLE_KILL}::test_the_real_command_stopped_by_a_signal",),
    ),
    Control(
        row=2,
        what="an interruption that is a crash",
        file="gda/cli/main.py",
        edits=(
            (
                "    except KeyboardInterrupt:\n        return _fail(TryAgainError(_INTERRUPTED), args)\n",
                "    except KeyboardInterrupt:\n        raise\n",
            ),
        ),
        tests=(f"{_SAMPLE_KILL}::test_the_real_command_stopped_by_a_signal",),
    ),
    Control(
        row=2,
        what="a step that waits for its job without minding SIGTERM",
        file=_WATCHING,
        edits=(("    before = signal.signal(signal.SIGTERM, interrupt)\n", "    before = signal.getsignal(signal.SIGTERM)\n"),),
        tests=(f"{_TEST_WATCHING}::test_a_terminated_step_takes_its_job_back",),
    ),
    Control(
        row=2,
        what="a cancelled step that leaves its job behind",
        file=_WATCHING,
        edits=(("                self._take_back(body, say)\n", ""),),
        tests=(f"{_TEST_WATCHING}::test_a_terminated_step_takes_its_job_back",),
    ),
    Control(
        row=2,
        what="an interruption that a library swallows taken for a fault of the file",
        file="gda/runtime/reading.py",
        edits=(("        require_not_stopped()\n", ""),),
        tests=("tests/unit/runtime/test_interruption.py::test_an_interruption_is_no_fault_of_a_file_and_no_verdict",),
    ),
    Control(
        row=2,
        what="an interruption that a library swallows taken for a broken check of the gate",
        file="gda/gate/inspection.py",
        edits=(("            require_not_stopped()\n", ""),),
        tests=("tests/unit/runtime/test_interruption.py::test_an_interruption_is_no_fault_of_a_file_and_no_verdict",),
    ),
    Control(
        row=2,
        what="an interruption that a library swallows taken for a reason against promotion",
        file="gda/registry/gate.py",
        edits=(("        require_not_stopped()\n", ""),),
        tests=("tests/unit/runtime/test_interruption.py::test_nor_a_reason_of_the_gate",),
    ),
    Control(
        row=2,
        what="an error that an interruption has become taken for the command's own",
        file="gda/cli/main.py",
        edits=(("TryAgainError(_INTERRUPTED) if stop_requested() else error", "error"),),
        tests=("tests/unit/runtime/test_interruption.py::test_a_command_says_that_it_was_interrupted",),
    ),
    Control(
        row=3,
        what="a shard that replaces one of the same name",
        file="gda/io/atomic.py",
        edits=(("        os.link(temporary, path)\n", "        os.replace(temporary, path)\n        return True\n"),),
        tests=(f"{_TEST_PUBLISH}::test_commit_new_never_replaces",),
    ),
    Control(
        row=3,
        what="a shard renamed over that of a faster worker",
        file=_SHARDS,
        edits=(("if not commit_new(temporary, path) and", "if not (os.replace(temporary, path) is None) and"),),
        tests=(
            f"{_SAMPLE_FAULTS}::test_the_loser_of_a_race_leaves_the_winner_s_shard_alone",
            f"{_TEST_SHARDS}::test_second_writer_of_other_bytes_is_refused",
        ),
    ),
    Control(
        row=3,
        what="a second writer refused without a look at its bytes",
        file=_SHARDS,
        edits=(("if not commit_new(temporary, path) and sha256_of(path) != index.sha256:", "if not commit_new(temporary, path):"),),
        tests=(
            f"{_TEST_SHARDS}::test_second_writer_of_equal_bytes_is_welcome",
            f"{_SAMPLE_FAULTS}::test_the_loser_of_a_race_leaves_the_winner_s_shard_alone",
        ),
    ),
    Control(
        row=3,
        what="a second writer believed without a look at its bytes",
        file=_SHARDS,
        edits=(
            ("if not commit_new(temporary, path) and sha256_of(path) != index.sha256:", "if not commit_new(temporary, path) and False:"),
        ),
        tests=(f"{_TEST_SHARDS}::test_second_writer_of_other_bytes_is_refused",),
    ),
    Control(
        row=4,
        what="temporary files in the folder that is published",
        file="gda/io/atomic.py",
        edits=(("    staging = next((folder for folder in path.parents if _is_staging(folder)), path)\n", "    staging = path\n"),),
        tests=(f"{_TEST_PUBLISH}::test_a_file_under_way_when_another_process_publishes",),
    ),
    Control(
        row=4,
        what="a set that others published meanwhile not looked for",
        file=_SAMPLE,
        edits=(("        if published_meanwhile(workspace):\n", "        if False:\n"),),
        tests=(f"{_SAMPLE_FAULTS}::test_a_worker_that_slept_changes_nothing",),
    ),
    Control(
        row=4,
        what="a work folder that goes while it is used taken for a defect",
        file=_SAMPLE,
        edits=(("    except (OSError, ValueError, DataError) as error:", "    except ZeroDivisionError as error:"),),
        tests=(f"{_SAMPLE_FAULTS}::test_a_worker_that_slept_changes_nothing",),
    ),
    Control(
        row=5,
        what="a shard that just ends taken for whole",
        file=_SHARDS,
        edits=(
            (
                "        if header == _ZERO:\n            return _require_end(file, shard)\n",
                "        if len(header) < BLOCK or header == _ZERO:\n            return\n",
            ),
        ),
        tests=(f"{_IO_DAMAGE}::test_every_cut_at_a_block_is_found", f"{_IO_DAMAGE}::test_any_cut_between_blocks_is_found"),
    ),
    Control(
        row=5,
        what="a member that is cut short taken for whole",
        file=_SHARDS,
        edits=(
            (
                "        if header == _ZERO:\n            return _require_end(file, shard)\n",
                "        if len(header) < BLOCK or header == _ZERO:\n            return\n",
            ),
            ("    if size + padding > left:", "    if False:"),
            ("    if len(data) < size + padding:", "    if False:"),
        ),
        tests=(f"{_TEST_SOURCES}::test_missing_and_truncated_tars",),
    ),
    Control(
        row=5,
        what="sampled shards not read again before they are published",
        file=_SAMPLE,
        edits=(
            (
                "    damaged = [job for job in work.jobs if job.rows(checked=True) is None]\n",
                "    damaged = [job for job in work.jobs if job.rows() is None]\n",
            ),
        ),
        tests=(f"{_SAMPLE_FAULTS}::test_a_damaged_shard_alone_is_sampled_again",),
    ),
    Control(
        row=5,
        what="a verify that opens no shard",
        file=_VERIFY,
        edits=(("    tasks = [task for task in tasks if (path / task.shard.name).is_file()]\n", "    tasks = []\n"),),
        tests=(f"{_IO_DAMAGE}::test_every_cut_at_a_block_is_found",),
    ),
    Control(
        row=5,
        what="a verify that compares neither files nor records",
        file="gda/verify.py",
        edits=(
            ("    problems = damaged_files(path)\n    listed", "    problems: list[str] = []\n    listed"),
            ("        problems += [problem for problem in _outcome(check, path) if problem not in problems]\n", "        pass\n"),
        ),
        tests=(f"{_SAMPLE_FAULTS}::test_a_damaged_shard_of_a_published_set_is_named",),
    ),
    Control(
        row=6,
        what="a shard's checksum not compared",
        file=_VERIFY,
        edits=(("        if sha256_of(path) != task.shard.sha256:", "        if False:"),),
        tests=(f"{_IO_DAMAGE}::test_any_flipped_bit_is_found",),
    ),
    Control(
        row=6,
        what="an image's checksum not compared by verify",
        file=_VERIFY,
        edits=(('    if hashlib.sha256(record.image).hexdigest() != row["sha256"]:', "    if False:"),),
        tests=(f"{_IO_DAMAGE}::test_flipped_image_bit_names_the_record",),
    ),
    Control(
        row=6,
        what="an image's checksum not compared by the loader",
        file=_IN_MEMORY,
        edits=(("            if hashlib.sha256(record.image).hexdigest() != sha256:", "            if False:"),),
        tests=(f"{_IO_DAMAGE}::test_flipped_image_bit_names_the_record",),
    ),
    Control(
        row=6,
        what="padding not looked at",
        file=_SHARDS,
        edits=(("    if strict and data.count(0, size) != padding:", "    if False:"),),
        tests=(f"{_IO_DAMAGE}::test_flipped_padding_names_the_record",),
    ),
    Control(
        row=7,
        what="shards that are named and not looked for",
        file=_SNAPSHOT,
        edits=(("        elif not (path / shard.name).is_file():", "        elif False:"),),
        tests=(f"{_IO_DAMAGE}::test_missing_file",),
    ),
    Control(
        row=7,
        what="names of shards taken as they are",
        file=_SNAPSHOT,
        edits=(('        if not SHARD_NAME.match(shard.name) or not shard.name.startswith(f"{shard.split}-"):', "        if False:"),),
        tests=(f"{_TEST_READING}::test_index_is_not_trusted",),
    ),
    Control(
        row=7,
        what="a manifest that contradicts its index",
        file=_SNAPSHOT,
        edits=(
            ("        if problems := manifest_problems(index, rows):\n            raise", "        if problems := []:\n            raise"),
        ),
        tests=(f"{_TEST_READING}::test_index_is_not_trusted",),
    ),
    Control(
        row=7,
        what="a manifest of another checksum",
        file="gda/io/manifest.py",
        edits=(("    if hashlib.sha256(data).hexdigest() != sha256:", "    if False:"),),
        tests=(f"{_TEST_READING}::test_index_is_not_trusted",),
    ),
    Control(
        row=7,
        what="shards that no index names",
        file=_VERIFY,
        edits=(
            ("    problems = index_problems(path, index) + _stray_shards(path, index)\n", "    problems = index_problems(path, index)\n"),
        ),
        tests=(f"{_IO_DAMAGE}::test_stray_shard",),
    ),
    Control(
        row=7,
        what="a content digest that is not computed again",
        file=_VERIFY,
        edits=(("    if digest_rows(rows, index.classes) != index.digest:", "    if False:"),),
        tests=(f"{_IO_DAMAGE}::test_digest_is_checked",),
    ),
    Control(
        row=8,
        what="a sampled shard recognised by its time in place of its size",
        file="gda/data/store/writer.py",
        edits=(
            ('"size": shard.stat().st_size, "rows"', '"size": shard.stat().st_mtime_ns, "rows"'),
            ('if shard.stat().st_size == content["size"]', 'if shard.stat().st_mtime_ns == content["size"]'),
        ),
        tests=(f"{_SAMPLE_FAULTS}::test_a_clock_that_is_wrong",),
    ),
    Control(
        row=8,
        what="a source recognised by the times of its files",
        file="gda/data/sources/source.py",
        edits=(
            (
                "            content = sha256_of(record.payload.path)\n",
                "            content = str(record.payload.path.stat().st_mtime_ns)\n",
            ),
        ),
        tests=("tests/unit/data/test_snapshot_stage.py::test_same_source_same_bytes",),
    ),
)
