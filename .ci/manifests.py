"""Holds launch/gke's manifests against Kubernetes' own schemas: python .ci/manifests.py FILE...

JobSet is no part of Kubernetes, and kubernetes-validate does not know it: here are the fields of it that we use
(sigs.k8s.io/jobset, api/jobset/v1alpha2/jobset_types.go). The jobs that it makes are batch/v1, validated as such.
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
WORDS = {
    "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
    "onJobFailureReasons": {
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "FailedIndexes",
        "MaxFailedIndexesExceeded",
        "PodFailurePolicy",
    },
}


def faults(document: dict[str, Any]) -> list[str]:
    """What is wrong with a JobSet, one sentence each."""
    found = [] if document.get("apiVersion") == "jobset.x-k8s.io/v1alpha2" else ["apiVersion is no JobSet's"]

    def look(value: Any, where: str) -> None:
        if isinstance(value, list):
            for item in value:
                look(item, where)
        elif isinstance(value, dict) and where in FIELDS:
            for name, part in value.items():
                if name not in FIELDS[where]:
                    found.append(f"{where}: there is no field {name}")
                if name in WORDS and not set(part if isinstance(part, list) else [part]) <= WORDS[name]:
                    found.append(f"{where}.{name}: {part} is none of {sorted(WORDS[name])}")
                look(part, f"{where}.{name}".lstrip("."))

    look(document, "")
    for job in document["spec"]["replicatedJobs"]:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}} | job["template"]
        try:
            kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{job['name']}: {'.'.join(map(str, error.path))}: {error.message}")
    return found


if __name__ == "__main__":
    told = [f"{file}: {fault}" for file in sys.argv[1:] for fault in faults(yaml.safe_load(Path(file).read_text()))]
    print("\n".join(told) or "All manifests are valid.")
    sys.exit(bool(told))
