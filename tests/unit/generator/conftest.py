"""A tiny cascade with random weights, and one small colour-equals-class snapshot, built once a session."""

import pytest

from gda.demo_base.build import build_tiny_cascade


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return build_tiny_cascade(tmp_path_factory.mktemp("cascade") / "tiny")
