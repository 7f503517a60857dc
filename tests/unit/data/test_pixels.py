"""Room for decoded images: in memory, or in a file that nobody else sees."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mapped import LISTED, is_mapped

from gda.data.images.pixels import room_for
from gda.errors import MissingError


@pytest.mark.skipif(not LISTED, reason="only Linux lists what is mapped")
def test_images_lie_in_a_file_where_a_folder_is_given(tmp_path: Path) -> None:
    """The system may write them back and forget them; without a folder they are plain memory."""
    assert is_mapped(room_for(8, 64, scratch=tmp_path))
    assert not is_mapped(room_for(8, 64))


def test_the_file_has_no_name_and_the_images_are_as_written(tmp_path: Path) -> None:
    """Nothing is left behind, not even by a process that is killed; the tensor keeps what it was given."""
    images = room_for(4, 8, scratch=tmp_path)
    assert os.listdir(tmp_path) == []
    assert images.shape == (4, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert images.sum() == 0
    written = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    images.numpy()[:] = written
    assert (images.numpy() == written).all()


def test_no_images_need_no_room(tmp_path: Path) -> None:
    """An empty file cannot be mapped."""
    assert room_for(0, 8, scratch=tmp_path).shape == (0, 3, 8, 8)


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found full while pages are written back, it would end the process without a word."""

    def full(descriptor: int, start: int, length: int) -> None:
        assert length == 4 * 3 * 8 * 8
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(MissingError, match="No space left"):
        room_for(4, 8, scratch=tmp_path)
