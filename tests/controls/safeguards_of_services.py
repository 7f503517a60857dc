"""Rows 9 to 11, 24 and 26 of docs/reliability.md: disks, servers, memory, MLflow."""

from control import Control

_PUBLISH, _PARALLEL = "gda/io/publish.py", "gda/runtime/parallel.py"
_SAMPLING = "gda/generator/sampling/sample_shards.py"
_API = "gda/cluster/api.py"
_REPLAY, _REGISTRY = "gda/tracking/replay.py", "gda/registry/model_registry.py"

_SAMPLE_FAULTS = "tests/faults/test_sample_faults.py"
_IO_DISK = "tests/faults/test_io_disk.py"
_TEST_SOURCES = "tests/unit/data/test_sources.py"
_TEST_WATCHING, _TEST_TRAINING = "tests/unit/cluster/test_job_watching.py", "tests/unit/generator/finetuning/test_training_guarantees.py"
_TEST_TRACKING, _TEST_MODELS = "tests/unit/tracking/test_tracking.py", "tests/unit/tracking/test_tracking_models.py"
_TEST_KEPT, _TEST_PROMOTE = "tests/unit/tracking/test_kept_runs.py", "tests/unit/stages/test_promote.py"

SERVICES: tuple[Control, ...] = (
    Control(
        row=9,
        what="errors of the disk passed on as they are",
        file="gda/runtime/disks.py",
        edits=(
            (
                "        if (reason := _reason(error, _WHILE_WRITING)) is None:\n",
                "        if (reason := _reason(error, _WHILE_WRITING)) is None or True:\n",
            ),
        ),
        tests=(
            f"{_IO_DISK}::test_small_files",
            f"{_IO_DISK}::test_shards",
            f"{_IO_DISK}::test_snapshot_on_a_full_disk",
            f"{_IO_DISK}::test_really_full_disk",
            f"{_SAMPLE_FAULTS}::test_a_full_or_failing_disk",
            f"{_SAMPLE_FAULTS}::test_a_target_that_cannot_be_written",
        ),
    ),
    Control(
        row=9,
        what="a file renamed before it is flushed",
        file="gda/io/atomic.py",
        edits=(("        file.flush()\n        os.fsync(file.fileno())\n", "        file.flush()\n"),),
        tests=(f"{_IO_DISK}::test_small_files",),
    ),
    Control(
        row=9,
        what="a temporary file left where writing failed",
        file="gda/io/atomic.py",
        edits=(
            (
                "            os.replace(temporary, path)\n        except BaseException:\n            temporary.unlink(missing_ok=True)\n",
                "            os.replace(temporary, path)\n        except BaseException:\n",
            ),
        ),
        tests=(f"{_IO_DISK}::test_small_files",),
    ),
    Control(
        row=9,
        what="finished shards sampled again",
        file=_SAMPLING,
        edits=(("    if job.rows() is not None:\n", "    if False:\n"),),
        tests=(f"{_SAMPLE_FAULTS}::test_a_full_or_failing_disk", f"{_SAMPLE_FAULTS}::test_a_target_that_cannot_be_written"),
    ),
    Control(
        row=9,
        what="half a copy left on the disk that is full",
        file=_PUBLISH,
        edits=(("    finally:\n        shutil.rmtree(sibling, ignore_errors=True)\n", ""),),
        tests=(f"{_IO_DISK}::test_copy_across_disks_fills_the_target",),
    ),
    Control(
        row=9,
        what="a checkpoint renamed before it is flushed",
        file="gda/generator/finetuning/checkpoints.py",
        edits=(("        for path in temporary.iterdir():\n            sync(path)\n", ""),),
        tests=(f"{_TEST_TRAINING}::test_a_full_disk_leaves_the_checkpoint_before",),
    ),
    Control(
        row=10,
        what="an address taken for a folder",
        file="gda/data/sources/readers.py",
        edits=(('    if "://" in source:\n', "    if False:\n"),),
        tests=(f"{_TEST_SOURCES}::test_unknown_schemes",),
    ),
    Control(
        row=10,
        what="a server in trouble tried once",
        file=_API,
        edits=(("                if not left:\n                    raise\n", "                raise\n"),),
        tests=(f"{_TEST_WATCHING}::test_a_server_that_stumbles_is_tried_again",),
    ),
    Control(
        row=10,
        what="pauses that do not grow",
        file=_API,
        edits=(("            wait = min(2 * wait, _LONGEST_WAIT)\n", ""),),
        tests=(f"{_TEST_WATCHING}::test_a_server_that_stumbles_is_tried_again",),
    ),
    Control(
        row=10,
        what="a server in trouble taken for one that refuses",
        file=_API,
        edits=(("    if error.status in (410, 429) or not error.status or error.status >= 500:\n", "    if not error.status:\n"),),
        tests=(
            f"{_TEST_WATCHING}::test_a_server_that_stumbles_is_tried_again",
            f"{_TEST_WATCHING}::test_a_server_that_stays_away_is_another_try",
        ),
    ),
    Control(
        row=10,
        what="a hub queried without a limit of time",
        file="gda/generator/weights/hub.py",
        edits=((", timeout=PROBE_SECONDS)", ")"),),
        tests=("tests/unit/generator/weights/test_hub.py::test_a_silent_network_is_given_up",),
    ),
    Control(
        row=11,
        what="a batch that does not fit not halved",
        file=_SAMPLING,
        edits=(("        if len(batch) == 1:\n", "        if True:\n"),),
        tests=(
            f"{_SAMPLE_FAULTS}::test_little_memory",
            "tests/unit/stages/test_sample_modes.py::test_too_little_memory_splits_the_batch_and_says_so",
        ),
    ),
    Control(
        row=11,
        what="the size of a part not recorded",
        file=_SAMPLING,
        edits=((' | ({} if len(pixels) == len(batch) else {"batch_size": len(pixels)})', ""),),
        tests=(
            f"{_SAMPLE_FAULTS}::test_little_memory",
            "tests/unit/stages/test_sample_modes.py::test_too_little_memory_splits_the_batch_and_says_so",
        ),
    ),
    Control(
        row=11,
        what="a fine-tuning out of memory that proposes nothing",
        file="gda/generator/finetuning/train.py",
        edits=(("    except torch.OutOfMemoryError as error:\n        raise _out_of_memory(job, error) from None\n", ""),),
        tests=(f"{_TEST_TRAINING}::test_out_of_memory_says_what_to_set_and_loses_nothing",),
    ),
    Control(
        row=11,
        what="a worker killed for memory taken for one killed from outside",
        file=_PARALLEL,
        edits=(("        if _killed_for_memory() != killed_before:\n", "        if False:\n"),),
        tests=("tests/unit/runtime/test_parallel.py::test_a_killed_worker_is_reported",),
    ),
    Control(
        row=24,
        what="a kept run forgotten before it is logged",
        file=_REPLAY,
        edits=(
            ("        run = read_kept(path)\n", "        run = read_kept(path)\n        path.unlink()\n"),
            ("    path.unlink()\n    return notes\n", "    return notes\n"),
        ),
        tests=(f"{_TEST_MODELS}::test_an_interrupted_logging_is_completed_by_the_next",),
    ),
    Control(
        row=24,
        what="a run that is not looked for before it is made, and a second one that is not removed",
        file=_REPLAY,
        edits=(
            ("    if not with_key(client, experiment, run.identity):\n", "    if True:\n"),
            ('        if other.info.status != "FINISHED":\n', "        if False:\n"),
        ),
        tests=(
            f"{_TEST_TRACKING}::test_runs_kept_while_the_server_is_away_are_logged_once",
            f"{_TEST_MODELS}::test_an_interrupted_logging_is_completed_by_the_next",
        ),
    ),
    Control(
        row=24,
        what="the path of a generator kept as it was given",
        file="gda/tracking/runs.py",
        edits=(("str(run.model.path.absolute())", "str(run.model.path)"),),
        tests=(f"{_TEST_MODELS}::test_a_generator_is_kept_while_the_server_is_away",),
    ),
    Control(
        row=24,
        what="a note that is not settled",
        file="gda/tracking/started.py",
        edits=(("                _keep_published(path, folder)\n", ""),),
        tests=(f"{_TEST_KEPT}::test_killed_between_publishing_and_keeping_it_is_logged",),
    ),
    Control(
        row=24,
        what="a second run that is not removed",
        file=_REPLAY,
        edits=(('        if other.info.status != "FINISHED":\n', "        if False:\n"),),
        tests=(f"{_TEST_KEPT}::test_a_lost_reply_leaves_one_finished_run",),
    ),
    Control(
        row=24,
        what="two processes that log at once, and a second run that is not removed",
        file=_REPLAY,
        edits=(
            (
                '        with locked(folder / "lock", busy="another process is logging these runs; '
                'they are kept and logged next time", wait=_WAIT):\n',
                "        with suppress():\n",
            ),
            ('        if other.info.status != "FINISHED":\n', "        if False:\n"),
        ),
        tests=(f"{_TEST_MODELS}::test_two_processes_at_once_log_a_run_once",),
    ),
    Control(
        row=24,
        what="a promotion that does not say what has been changed",
        file=_REGISTRY,
        edits=(('            raise type(error)(f"{error}; {self._changed}, {again}") from None\n', "            raise\n"),),
        tests=(f"{_TEST_PROMOTE}::test_mlflow_away_promotes_nothing",),
    ),
    Control(
        row=24,
        what="MLflow's database opened to be read alone, where a killed process has left it half written",
        file="gda/tracking/sqlite.py",
        edits=(("?mode=rw", "?mode=ro"),),
        tests=("tests/unit/tracking/test_first_start.py::test_a_database_that_was_being_written_when_its_process_was_killed_is_whole",),
    ),
    Control(
        row=26,
        what="a champion that is not looked up again before it is replaced",
        file=_REGISTRY,
        edits=(("        if (current and current.version) != (over and over.version):\n", "        if False:\n"),),
        tests=(f"{_TEST_PROMOTE}::test_a_promotion_in_between_wins",),
    ),
    Control(
        row=26,
        what="a version that is not looked for by its digest, and a second one that is not removed",
        file=_REGISTRY,
        edits=(
            (
                "        return min(matching, key=lambda version: int(version.version)) if matching else None\n",
                "        return None\n",
            ),
            ("            kept = only_version(self._client, self.model_name, card.digest)\n", "            kept = None\n"),
        ),
        tests=(
            f"{_TEST_PROMOTE}::test_a_crash_between_registering_and_promoting_is_made_good",
            f"{_TEST_PROMOTE}::test_a_gain_makes_the_candidate_champion_once",
        ),
    ),
    Control(
        row=26,
        what="a champion that has to beat itself",
        file="gda/stages/promote.py",
        edits=(("    if champion is None or card is None or champion.digest != card.digest:\n", "    if True:\n"),),
        tests=(f"{_TEST_PROMOTE}::test_a_gain_makes_the_candidate_champion_once",),
    ),
)
