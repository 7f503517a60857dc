"""Rows 12 to 18 of docs/reliability.md: what losses, checkpoints, images, class names and sets may be."""

from control import Control

_TRAIN, _GUARANTEES = "tests/unit/generator/finetuning/test_train.py::", "tests/unit/generator/finetuning/test_training_guarantees.py::"
_CLASSIFIER, _SAMPLE = "tests/unit/training/test_classifier.py::", "tests/faults/test_sample_faults.py::"
_IMAGES, _DEEP = "tests/unit/data/test_images.py::", "tests/unit/data/test_deep_values.py::"
_STAGE, _SOURCES = "tests/unit/data/test_snapshot_stage.py::", "tests/unit/data/test_sources.py::"
_NAMES, _READERS = "tests/unit/data/test_classes_and_splits.py::", "tests/unit/data/test_readers.py::"

DATA: tuple[Control, ...] = (
    Control(
        row=12,
        what="a fine-tuning loss that need not be finite",
        file="gda/generator/finetuning/train.py",
        edits=(("        if not math.isfinite(mean):\n", "        if False:\n"),),
        tests=(
            _TRAIN + "test_a_diverging_loss_names_step_and_last_good_state",
            _GUARANTEES + "test_a_loss_that_is_not_a_number_is_never_learned_from",
        ),
    ),
    Control(
        row=12,
        what="a classifier's loss that need not be finite",
        file="gda/training/loop/classifier.py",
        edits=(("        if not math.isfinite(loss):\n", "        if False:\n"),),
        tests=(_CLASSIFIER + "test_a_diverging_loss_stops_the_run",),
    ),
    Control(
        row=12,
        what="sampled pixels that need not be finite",
        file="gda/generator/families/denoising.py",
        edits=(("    if not bool(finite.all()):\n", "    if False:\n"),),
        tests=(_SAMPLE + "test_poisoned_weights",),
    ),
    Control(
        row=12,
        what="images of NaN without the names of shard and images",
        file="gda/generator/sampling/sample_shards.py",
        edits=(('        raise DataError(f"{job.shard.name}: {error} ({keys}); the shard is not written") from None', "        raise"),),
        tests=(_SAMPLE + "test_one_image_that_is_not_finite_fails_its_shard_alone", _SAMPLE + "test_poisoned_weights"),
    ),
    Control(
        row=13,
        what="the checksum of `state.json` left out",
        file="gda/generator/finetuning/checkpoints.py",
        edits=(("index.pop(_INDEX_CHECKSUM) != _text_digest(index) or ", "index.pop(_INDEX_CHECKSUM) is None or "),),
        tests=("tests/unit/stages/test_verify_outputs.py::test_an_edited_checkpoint_is_passed_over",),
    ),
    Control(
        row=13,
        what="the checksum of a generator's state left out",
        file="gda/generator/finetuning/checkpoints.py",
        edits=(('    if _sha256(path) != index["sha256"]:\n', "    if False:\n"),),
        tests=(
            _TRAIN + "test_a_damaged_checkpoint_falls_back_and_says_so",
            _GUARANTEES + "test_a_checkpoint_whose_bytes_changed_is_not_read",
        ),
    ),
    Control(
        row=13,
        what="leftovers of a killed writer that stay",
        file="gda/generator/finetuning/checkpoints.py",
        edits=(
            (
                '        for left in self.folder.glob(".checkpoint-*"):  # of a killed writer\n',
                '        for left in self.folder.glob("nothing"):\n',
            ),
        ),
        tests=(_GUARANTEES + "test_leftovers_of_a_killed_writer_are_cleared",),
    ),
    Control(
        row=13,
        what="the checksum of a classifier's state left out",
        file="gda/training/loop/checkpoint.py",
        edits=(('    if metadata.get("digest") != _digest(state):\n', "    if False:\n"),),
        tests=(_CLASSIFIER + "test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used",),
    ),
    Control(
        row=13,
        what="no classifier's checkpoint kept but the newest",
        file="gda/training/loop/checkpoint.py",
        edits=(("_KEPT = 2\n", "_KEPT = 1\n"),),
        tests=(_CLASSIFIER + "test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used",),
    ),
    Control(
        row=13,
        what="a classifier resumed without its optimizer's state",
        file="gda/training/loop/classifier.py",
        edits=(('        restore_optimizer(self.optimizer, _under(state, "optimizer/"))\n', ""),),
        tests=(_CLASSIFIER + "test_a_killed_run_continues_to_the_same_bits",),
    ),
    Control(
        row=14,
        what="images opened but not loaded to the last byte",
        file="gda/data/images/codecs.py",
        edits=(("        image.load()\n", ""),),
        tests=(_IMAGES + "test_truncated_at_any_tenth",),
    ),
    Control(
        row=14,
        what="zero bytes left to the decoder",
        file="gda/data/images/codecs.py",
        edits=(("    if not data:\n", "    if False:\n"),),
        tests=(_IMAGES + "test_what_is_no_image", _STAGE + "test_unreadable_images_are_quarantined_below_it"),
    ),
    Control(
        row=14,
        what="bad images left out without a word",
        file="gda/data/ingest/ingest.py",
        edits=(('                    rejected.append((record.name, encoded.reason or ""))\n', "                    continue\n"),),
        tests=(
            _STAGE + "test_unreadable_images_are_quarantined_below_it",
            _STAGE + "test_unreadable_images_are_refused_above_the_limit",
        ),
    ),
    Control(
        row=14,
        what="any share of bad images accepted",
        file="gda/data/ingest/ingest.py",
        edits=(("    if not rejected or len(rejected) <= limit * total:\n", "    if True:\n"),),
        tests=(_STAGE + "test_unreadable_images_are_refused_above_the_limit",),
    ),
    Control(
        row=14,
        what="images recognised by their endings alone",
        file="gda/data/images/listing.py",
        edits=(("    return path.is_file() and image_format(read_head(path)) is not None\n", "    return False\n"),),
        tests=(_READERS + "test_images_are_chosen_by_content",),
    ),
    Control(
        row=15,
        what="modes other than RGB not converted",
        file="gda/data/images/codecs.py",
        edits=(('_PLAIN = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV")\n', '_PLAIN = ("RGB",)\n'),),
        tests=(_IMAGES + "test_cmyk_becomes_rgb", _IMAGES + "test_grey_bilevel_and_palette_become_rgb"),
    ),
    Control(
        row=15,
        what="alpha dropped",
        file="gda/data/images/codecs.py",
        edits=(
            (
                '        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")\n',
                '        return rgba.convert("RGB")\n',
            ),
        ),
        tests=(_IMAGES + "test_alpha_lies_over_white", _IMAGES + "test_palette_transparency_lies_over_white"),
    ),
    Control(
        row=15,
        what="EXIF rotation not applied",
        file="gda/data/images/codecs.py",
        edits=(("        return ImageOps.exif_transpose(image) if turned else image ", "        return image if turned else image "),),
        tests=(_IMAGES + "test_exif_rotation_is_applied",),
    ),
    Control(
        row=15,
        what="a range made up where none is known",
        file="gda/data/images/codecs.py",
        edits=(
            (
                '        raise DataError(f"{name}: has more than 8 bits a value, and no range of them is known here")\n',
                "        pixel_range = (0.0, 65535.0)\n",
            ),
        ),
        tests=(_IMAGES + "test_values_of_unknown_range_are_refused",),
    ),
    Control(
        row=15,
        what="a fixed range in place of the measured one",
        file="gda/data/images/deep.py",
        edits=(("(0.0, float(max(2 ** int(high).bit_length() - 1, _BYTE_MAX)))", "(0.0, float(_WORD_MAX))"),),
        tests=(_DEEP + "test_a_sets_range_is_measured_and_reported",),
    ),
    Control(
        row=15,
        what="the lower byte of 16-bit colours dropped",
        file="gda/data/images/deep.py",
        edits=(("        values |= _of_lower_bytes(data, name)\n", ""),),
        tests=(_DEEP + "test_colours_keep_their_lower_byte",),
    ),
    Control(
        row=15,
        what="values of 16 bits cut to their lowest 8",
        file="gda/data/images/deep.py",
        edits=(("    low, high = wanted\n", "    low, high = 0.0, 255.0\n"),),
        tests=(_IMAGES + "test_sixteen_bits_are_scaled",),
    ),
    Control(
        row=15,
        what="maps of more than 8 bits taken for 8",
        file="gda/data/images/deep.py",
        edits=((' or ";16" in _raw_mode(image) or _largest(image) > _BYTE_MAX\n', ' or ";16" in _raw_mode(image)\n'),),
        tests=(_DEEP + "test_binary_ppm_and_pgm", _DEEP + "test_a_sets_range_is_measured_and_reported"),
    ),
    Control(
        row=16,
        what="the first of several frames taken",
        file="gda/data/images/codecs.py",
        edits=(('    if image.format != "MPO" and frames > 1:\n', "    if False:\n"),),
        tests=(_IMAGES + "test_several_frames", _STAGE + "test_unreadable_images_are_quarantined_below_it"),
    ),
    Control(
        row=16,
        what="every decoder of Pillow tried",
        file="gda/data/images/codecs.py",
        edits=(("        image = Image.open(io.BytesIO(data), formats=FORMATS)\n", "        image = Image.open(io.BytesIO(data))\n"),),
        tests=(_IMAGES + "test_gif_is_not_accepted",),
    ),
    Control(
        row=16,
        what="no pixel limit but Pillow's",
        file="gda/data/images/codecs.py",
        edits=(("    if width * height > MAX_PIXELS:\n", "    if False:\n"),),
        tests=(_IMAGES + "test_own_pixel_cap",),
    ),
    Control(
        row=16,
        what="parquet of any size unpacked",
        file="gda/data/sources/parquet.py",
        edits=(("            _require_bounded(path, file)\n", ""),),
        tests=(_READERS + "test_parquet_that_would_grow_beyond_reason",),
    ),
    Control(
        row=16,
        what="a `meta.mat` of any size unpacked",
        file="gda/data/imagenet/matlab.py",
        edits=(
            ("zlib.decompressobj().decompress(body, limit + 1)", "zlib.decompressobj().decompress(body)"),
            ("    if len(unpacked) > limit:\n", "    if False:\n"),
        ),
        tests=("tests/unit/data/test_imagenet_layout.py::test_meta_that_would_grow_beyond_reason",),
    ),
    Control(
        row=17,
        what="any class name taken",
        file="gda/data/store/classes.py",
        edits=(("    if reason:\n", "    if False:\n"),),
        tests=(_NAMES + "test_unusable_names", _SOURCES + "test_bad_folders", _SOURCES + "test_bad_metadata_rows"),
    ),
    Control(
        row=17,
        what="twins of case and unicode form let through",
        file="gda/data/store/classes.py",
        edits=(
            (
                "    _require_distinct(originals, [info.name.casefold() for info in classes], "
                '"differ only in upper and lower case or in unicode form")\n',
                "",
            ),
        ),
        tests=(_NAMES + "test_twins", _SOURCES + "test_bad_folders"),
    ),
    Control(
        row=17,
        what="names with one prompt let through",
        file="gda/data/store/classes.py",
        edits=(('    _require_distinct(originals, [info.prompt_name.casefold() for info in classes], "give the same prompt")\n', ""),),
        tests=(_NAMES + "test_prompt_twins", _SOURCES + "test_bad_folders"),
    ),
    Control(
        row=17,
        what="names left in the form in which they come",
        file="gda/data/store/classes.py",
        edits=(('    return unicodedata.normalize("NFC", name)\n', "    return name\n"),),
        tests=(_NAMES + "test_nfd_becomes_nfc", _STAGE + "test_nfd_folder_names"),
    ),
    Control(
        row=17,
        what="paths in tables that lead out of the folder",
        file="gda/data/sources/tables.py",
        edits=((' or path.is_absolute() or ".." in path.parts:\n', ":\n"),),
        tests=(_SOURCES + "test_bad_metadata_rows",),
    ),
    Control(
        row=17,
        what="keys that tell where a folder lies",
        file="gda/data/sources/folders.py",
        edits=(("key=path_key(name)", "key=path_key(str(path))"),),
        tests=(_SOURCES + "test_keys_come_from_paths_alone",),
    ),
    Control(
        row=18,
        what="an empty class folder passed over",
        file="gda/data/sources/layouts.py",
        edits=(('        if not placed.folder.holds_images and placed.split in (None, "train"):\n', "        if False:\n"),),
        tests=(_SOURCES + "test_bad_folders",),
    ),
    Control(
        row=18,
        what="classes without training images let through",
        file="gda/data/ingest/ingest.py",
        edits=(("    if not absent:\n", "    if True:\n"),),
        tests=(
            _SOURCES + "test_bad_folders",
            _STAGE + "test_class_whose_images_are_all_bad",
            _READERS + "test_where_the_only_image_of_a_class_went",
        ),
    ),
    Control(
        row=18,
        what="a source without a usable image let through",
        file="gda/data/ingest/ingest.py",
        edits=(
            (
                '            raise DataError("the source holds no usable images")\n',
                '            return pd.DataFrame(columns=["key", "split", "class", "pixel_sha256"])\n',
            ),
        ),
        tests=(_STAGE + "test_nothing_usable",),
    ),
    Control(
        row=18,
        what="a gate that accepts an empty set",
        file="gda/gate/expectations.py",
        edits=(('        gxe.ExpectTableRowCountToBeBetween(min_value=1, meta=_meta("the set has no images")),\n', ""),),
        tests=("tests/unit/gate/test_expectations.py::test_an_empty_table_fails_and_says_no_more_than_that",),
    ),
    Control(
        row=18,
        what="classes that may be missing at the gate",
        file="gda/gate/expectations.py",
        edits=(("        missing = [value for value in self.value_set if not counts.get(value)]\n", "        missing: list[Any] = []\n"),),
        tests=("tests/unit/gate/test_expectations.py::test_each_of_many_defects_is_named_and_nothing_else",),
    ),
)
