"""Kept files carry their own checksum: what was changed is not taken for what was kept."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from gda.config.sections import Arm
from gda.data.store.predictions import Predictions, read_predictions, write_predictions
from gda.errors import DataError
from gda.io.checked import checksum_of, is_whole, read_checked_json, with_checksum, write_checked, write_checked_json

TENSORS = {"b": np.arange(6, dtype=np.float32), "a": np.ones((2, 3), np.int64)}


def test_a_kept_file_is_whole_and_reads_as_before(tmp_path):
    """The healthy twin: the checksum changes nothing for readers of safetensors, and equal tensors give equal bytes."""
    path = tmp_path / "x.safetensors"
    write_checked(path, save(TENSORS, metadata={"z": "1", "k": "2"}))
    assert is_whole(path)
    assert all(np.array_equal(value, TENSORS[name]) for name, value in load_file(path).items())
    assert path.read_bytes() == with_checksum(save(TENSORS, metadata={"k": "2", "z": "1"}))


def test_every_changed_byte_is_found():
    """A flip of any byte, in header or tensors, and a cut at any place make the file damaged or one without a checksum."""
    data = with_checksum(save(TENSORS, metadata={"k": "2"}))
    text = int.from_bytes(data[:8], "little") + 8
    padding = range(len(data[:text].rstrip(b" ")), text)
    for place in set(range(len(data))) - set(padding):
        changed = bytearray(data)
        changed[place] ^= 1
        assert not checksum_of(bytes(changed)), place
        assert not checksum_of(data[:place]), place


@pytest.mark.parametrize("text", ['{"value": 2.0}', "[]", "{", "null"])
def test_kept_json_without_its_checksum_is_not_used(tmp_path, text):
    """Edited and foreign JSON is as good as none."""
    path = tmp_path / "x.json"
    write_checked_json(path, {"value": 1.0})
    assert read_checked_json(path) == {"value": 1.0}
    path.write_text(path.read_text().replace("1.0", "2.0"))
    assert read_checked_json(path) is None
    path.write_text(text)
    assert read_checked_json(path) is None


def test_predictions_keep_one_order_and_are_checked(tmp_path):
    """Read again after a kill they are in the order of arms and seeds as before, which tables are written in; a changed file is refused."""
    top = {(arm, seed): np.zeros((2, 1), np.int32) for arm, seed in ((Arm.MIXED, 10), (Arm.REAL, 2), (Arm.REAL, 10), (Arm.MIXED, 2))}
    before, path = Predictions(labels=np.zeros(2, np.int32), top=top, test_digest="d"), tmp_path / "p.safetensors"
    write_predictions(path, before)
    order = [(Arm.REAL, 2), (Arm.REAL, 10), (Arm.MIXED, 2), (Arm.MIXED, 10)]
    assert list(before.top) == list(read_predictions(path).top) == order
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"p\.safetensors.*checksum differs"):
        read_predictions(path)


def test_old_predictions_without_a_checksum_are_read(tmp_path):
    """Files of before there were checksums stay readable."""
    path = tmp_path / "p.safetensors"
    path.write_bytes(save({"labels": np.zeros(2, np.int32), "real/0": np.zeros((2, 1), np.int32)}, metadata={"test_digest": "d"}))
    assert read_predictions(path).test_digest == "d"
