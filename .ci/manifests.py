"""Validates manifests of Kubernetes: python .ci/manifests.py FILE...

kubernetes-validate has the schemas of Kubernetes but not of JobSet, so this file lists the JobSet fields that our
manifests use (sigs.k8s.io/jobset, api/jobset/v1alpha2/jobset_types.go). The jobs in a JobSet are validated as batch/v1.
"""

import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

FIELDS: dict[str, set[str]] = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"failurePolicy", "replicatedJobs"},
    "spec.failurePolicy": {"maxRestarts", "rules"},
    "spec.failurePolicy.rules": {"name", "action", "onJobFailureReasons"},
    "spec.replicatedJobs": {"name", "replicas", "template"},
}
VALUES = {
    "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
    "onJobFailureReasons": {
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "FailedIndexes",
        "MaxFailedIndexesExceeded",
        "PodFailurePolicy",
    },
}


def errors(document: dict[str, Any]) -> list[str]:
    """Returns the errors of a manifest."""
    if document.get("kind") != "JobSet":
        return invalid(document, str(document.get("kind")))
    found = [] if document.get("apiVersion") == "jobset.x-k8s.io/v1alpha2" else ["apiVersion is not that of a JobSet"]

    def check(value: Any, where: str) -> None:
        if isinstance(value, list):
            for item in value:
                check(item, where)
        elif isinstance(value, dict) and where in FIELDS:
            for name, part in value.items():
                if name not in FIELDS[where]:
                    found.append(f"{where}: unknown field {name}")
                if name in VALUES and not set(part if isinstance(part, list) else [part]) <= VALUES[name]:
                    found.append(f"{where}.{name}: {part} is not one of {sorted(VALUES[name])}")
                check(part, f"{where}.{name}".lstrip("."))

    check(document, "")
    for job in document["spec"]["replicatedJobs"]:
        manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}} | job["template"]
        found += invalid(manifest, job["name"])
    return found


def invalid(manifest: dict[str, Any], name: str) -> list[str]:
    """Returns the errors of a manifest whose schema kubernetes-validate has."""
    try:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{name}: {'.'.join(map(str, error.path))}: {error.message}"]
    return []


if __name__ == "__main__":
    documents = [(file, one) for file in sys.argv[1:] for one in yaml.safe_load_all(Path(file).read_text())]
    found = [f"{file}: {error}" for file, document in documents for error in errors(document)]
    print("\n".join(found) or "All manifests are valid.")
    sys.exit(bool(found))
