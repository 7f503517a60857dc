"""The rendered manifests against the schemas of Kubernetes itself: no field misspelt, misplaced or of a wrong type."""

from typing import Any

import kubernetes_validate
import pytest
from object_edits import RENDERED, Edit, drop, load, put

# The oldest release that the manifests are for, the one that pod security is pinned to, and the newest that is known.
RELEASES = ("1.30", "1.33", kubernetes_validate.latest_version())


def _refused(data: dict[str, Any], release: str) -> str:
    try:
        kubernetes_validate.validate(data, release, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", ["base", "local", "standalone"])
def test_every_object_fits_its_schema(name: str, release: str) -> None:
    """A cluster of any release named in the README takes every object."""
    objects = load(RENDERED / f"{name}.yaml")
    assert len(objects) > 15
    assert {f"{data['kind']}/{data['metadata']['name']}": refused for data in objects if (refused := _refused(data, release))} == {}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            put("Deployment/mlflow", "spec.template.spec.containers[mlflow].securityContext.readOnlyRootFileSystem", True),
            "readOnlyRootFileSystem",
        ),
        (put("Deployment/mlflow", "spec.template.spec.containers[mlflow].envFrom[0]", {"$patch": "replace"}), "$patch"),
        (put("Deployment/mlflow", "spec.replicas", "2"), "'2' is not of type"),
        (drop("Deployment/mlflow", "spec.selector"), "'selector' is a required property"),
    ],
)
def test_a_wrong_field_is_refused(edit: Edit, message: str) -> None:
    """The schemas are strict: what a server would drop silently is refused here."""
    objects = load(RENDERED / "base.yaml")
    edit(objects)
    refused = [_refused(data, RELEASES[-1]) for data in objects]
    assert any(message in message for message in refused), refused
