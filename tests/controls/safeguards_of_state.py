"""Rows 1 to 11, 24 and 26 of docs/reliability.md: kills, disks, processes, memory, MLflow."""

from control import Control

_PUBLISH, _SHARDS, _PARALLEL = "gda/io/publish.py", "gda/io/shards.py", "gda/parallel.py"
_DRAWING, _SAMPLE = "gda/generator/drawing.py", "gda/stages/sample.py"
_SNAPSHOT, _VERIFY, _RESIDENT = "gda/data/snapshot.py", "gda/data/verify.py", "gda/data/resident.py"
_WATCHING, _API = "gda/cluster/watching.py", "gda/cluster/api.py"
_REPLAY, _REGISTRY = "gda/tracking/replay.py", "gda/registry/models.py"

_SAMPLE_KILL, _SAMPLE_FAULTS = "tests/faults/test_sample_kill.py", "tests/faults/test_sample_faults.py"
_IO_KILL, _IO_DAMAGE, _IO_DISK = "tests/faults/test_io_kill.py", "tests/faults/test_io_damage.py", "tests/faults/test_io_disk.py"
_TEST_PUBLISH, _TEST_SHARDS = "tests/unit/io/test_publish.py", "tests/unit/io/test_shards.py"
_TEST_READING, _TEST_SOURCES = "tests/unit/data/test_reading.py", "tests/unit/data/test_sources.py"
_TEST_WATCHING, _TEST_TRAINING = "tests/unit/cluster/test_job_watching.py", "tests/unit/generator/test_training_guarantees.py"
_TEST_TRACKING, _TEST_MODELS = "tests/unit/core/test_tracking.py", "tests/unit/core/test_tracking_models.py"
_TEST_KEPT, _TEST_PROMOTE = "tests/unit/tracking/test_kept_runs.py", "tests/unit/stages/test_promote.py"

_KILLS = (
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
        what="finished shards drawn again",
        file=_DRAWING,
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
        file="gda/bookkeeping.py",
        edits=(("        signal.signal(signal.SIGTERM, _interrupt)\n", "        pass\n"),),
        tests=(f"{_SAMPLE_KILL}::test_the_real_command_told_to_end",),
    ),
    Control(
        row=2,
        what="an interruption that is a crash",
        file="gda/cli.py",
        edits=(("        return _fail(TryAgainError(_INTERRUPTED), args)\n", "        raise\n"),),
        tests=(f"{_SAMPLE_KILL}::test_the_real_command_told_to_end",),
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
)

_PROCESSES = (
    Control(
        row=3,
        what="a shard that replaces one of the same name",
        file=_PUBLISH,
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
        file=_PUBLISH,
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
)

_DAMAGE = (
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
        what="drawn shards not read again before they are published",
        file=_SAMPLE,
        edits=(
            (
                "    damaged = [job for job in work.jobs if job.rows(checked=True) is None]\n",
                "    damaged = [job for job in work.jobs if job.rows() is None]\n",
            ),
        ),
        tests=(f"{_SAMPLE_FAULTS}::test_a_damaged_shard_alone_is_drawn_again",),
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
        file=_RESIDENT,
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
        what="a drawn shard told by its time in place of its size",
        file="gda/data/writer.py",
        edits=(
            ('"size": shard.stat().st_size, "rows"', '"size": shard.stat().st_mtime_ns, "rows"'),
            ('if shard.stat().st_size == content["size"]', 'if shard.stat().st_mtime_ns == content["size"]'),
        ),
        tests=(f"{_SAMPLE_FAULTS}::test_a_clock_that_is_wrong",),
    ),
    Control(
        row=8,
        what="a source told by the times of its files",
        file="gda/data/sources.py",
        edits=(
            (
                "            content = sha256_of(record.payload.path)\n",
                "            content = str(record.payload.path.stat().st_mtime_ns)\n",
            ),
        ),
        tests=("tests/unit/data/test_snapshot_stage.py::test_same_source_same_bytes",),
    ),
    Control(
        row=9,
        what="errors of the disk passed on as they are",
        file="gda/storage.py",
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
        file=_PUBLISH,
        edits=(("        file.flush()\n        os.fsync(file.fileno())\n", "        file.flush()\n"),),
        tests=(f"{_IO_DISK}::test_small_files",),
    ),
    Control(
        row=9,
        what="a temporary file left where writing failed",
        file=_PUBLISH,
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
        what="finished shards drawn again",
        file=_DRAWING,
        edits=(("    if job.rows() is not None:\n", "    if False:\n"),),
        tests=(f"{_SAMPLE_FAULTS}::test_a_full_or_failing_disk", f"{_SAMPLE_FAULTS}::test_a_target_that_cannot_be_written"),
    ),
    Control(
        row=9,
        what="half a copy left on the disk that is full",
        file=_PUBLISH,
        edits=(("        shutil.rmtree(sibling, ignore_errors=True)\n", ""),),
        tests=(f"{_IO_DISK}::test_copy_across_disks_fills_the_target",),
    ),
    Control(
        row=9,
        what="a checkpoint renamed before it is flushed",
        file="gda/generator/checkpoints.py",
        edits=(("        for path in temporary.iterdir():\n            sync(path)\n", ""),),
        tests=(f"{_TEST_TRAINING}::test_a_full_disk_leaves_the_checkpoint_before",),
    ),
)

_SERVICES = (
    Control(
        row=10,
        what="an address taken for a folder",
        file="gda/data/readers.py",
        edits=(('    if "://" in source:\n', "    if False:\n"),),
        tests=(f"{_TEST_SOURCES}::test_unknown_schemes",),
    ),
    Control(
        row=10,
        what="a server in trouble asked once",
        file=_API,
        edits=(("                if not left:\n                    raise\n", "                raise\n"),),
        tests=(f"{_TEST_WATCHING}::test_a_server_that_stumbles_is_asked_again",),
    ),
    Control(
        row=10,
        what="pauses that do not grow",
        file=_API,
        edits=(("            wait = min(2 * wait, _LONGEST_WAIT)\n", ""),),
        tests=(f"{_TEST_WATCHING}::test_a_server_that_stumbles_is_asked_again",),
    ),
    Control(
        row=10,
        what="a server in trouble taken for one that refuses",
        file=_API,
        edits=(("    if error.status in (410, 429) or not error.status or error.status >= 500:\n", "    if not error.status:\n"),),
        tests=(
            f"{_TEST_WATCHING}::test_a_server_that_stumbles_is_asked_again",
            f"{_TEST_WATCHING}::test_a_server_that_stays_away_is_another_try",
        ),
    ),
    Control(
        row=10,
        what="a hub asked without a limit of time",
        file="gda/generator/hub.py",
        edits=((", timeout=PROBE_SECONDS)", ")"),),
        tests=("tests/unit/generator/test_hub.py::test_a_silent_network_is_given_up",),
    ),
    Control(
        row=11,
        what="a batch that does not fit not halved",
        file=_DRAWING,
        edits=(("        if len(batch) == 1:\n", "        if True:\n"),),
        tests=(
            f"{_SAMPLE_FAULTS}::test_little_memory",
            "tests/unit/stages/test_sample_modes.py::test_too_little_memory_splits_the_batch_and_says_so",
        ),
    ),
    Control(
        row=11,
        what="the size of a part not recorded",
        file=_DRAWING,
        edits=((' | ({} if len(pixels) == len(batch) else {"batch_size": len(pixels)})', ""),),
        tests=(
            f"{_SAMPLE_FAULTS}::test_little_memory",
            "tests/unit/stages/test_sample_modes.py::test_too_little_memory_splits_the_batch_and_says_so",
        ),
    ),
    Control(
        row=11,
        what="a fine-tuning out of memory that proposes nothing",
        file="gda/generator/train.py",
        edits=(("    except torch.OutOfMemoryError as error:\n        raise _out_of_memory(job, error) from None\n", ""),),
        tests=(f"{_TEST_TRAINING}::test_out_of_memory_says_what_to_set_and_loses_nothing",),
    ),
    Control(
        row=11,
        what="a worker killed for memory taken for one killed from outside",
        file=_PARALLEL,
        edits=(("        if _killed_for_memory() != killed_before:\n", "        if False:\n"),),
        tests=("tests/unit/core/test_parallel.py::test_a_killed_worker_is_said",),
    ),
    Control(
        row=24,
        what="a kept run forgotten before it is logged",
        file=_REPLAY,
        edits=(
            ("        run = read_kept(path)\n", "        run = read_kept(path)\n        path.unlink()\n"),
            ("    path.unlink()\n    return said\n", "    return said\n"),
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
        row=26,
        what="a champion that is not asked for again before it is replaced",
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
                "        return _registered(min(matching, key=lambda version: int(version.version))) if matching else None\n",
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

STATE: tuple[Control, ...] = (*_KILLS, *_PROCESSES, *_DAMAGE, *_SERVICES)
