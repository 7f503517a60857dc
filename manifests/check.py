"""`python -m manifests.check FILE...`: what is wrong with Kubernetes objects and compiled pipelines, a line a finding.

The files together are one whole: names that one uses may be in another.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gda.errors import GdaError
from manifests.documents import KubernetesObject, ManifestFinding, read
from manifests.namespace_rules import check_namespaces
from manifests.pod_rules import check_pod
from manifests.pod_specs import pod_specs
from manifests.rbac_rules import check_rbac
from manifests.references import check_references
from manifests.secret_values import check_values


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; returns 0 where there are none, 1 where there are, 3 for a file that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m manifests.check", description="Look for what a shared cluster should refuse.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="rendered manifests and compiled pipelines, as one whole")
    args = parser.parse_args(argv)
    try:
        documents = read(args.files)
        found = check(documents)
    except GdaError as error:
        print(f"manifests: {error}", file=sys.stderr)
        return error.exit_code
    pods = sum(len(pod_specs(document)) for document in documents)
    print("\n".join(map(str, found)) or f"nothing found in {len(documents)} objects with {pods} pod specifications")
    return 1 if found else 0


def check(documents: Sequence[KubernetesObject]) -> list[ManifestFinding]:
    """Every finding of `documents`, which are one whole, sorted."""
    accounts = {document.name: document.data for document in documents if document.kind == "ServiceAccount"}
    found = [*check_namespaces(documents), *check_references(documents)]
    for document in documents:
        found += [*check_rbac(document), *check_values(document)]
        for pod in pod_specs(document):
            found += check_pod(pod, accounts)
    return sorted(set(found))


if __name__ == "__main__":
    sys.exit(main())
