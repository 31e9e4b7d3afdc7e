"""The attestation of a verified build: an in-toto statement whose predicate has the shape of SLSA provenance.

It holds nothing but what the results depend on, so that everybody who repeats the build gets the same text.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import detbox
from detbox.deb.build import Job
from detbox.deb.plan import command

_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://slsa.dev/provenance/v1"
_BUILD_TYPE = "urn:detbox:deb-build:1"


def statement(job: Job, artefacts: dict[str, str], suite: str) -> dict[str, Any]:
    """The statement.  ``artefacts``: SHA-256 of each result by its name."""
    spec, source = job.spec(), job.source
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(artefacts.items())],
        "predicateType": _PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {
                    "source": source.name,
                    "version": source.version,
                    "suite": suite,
                    "build": command(source, job.options),
                    "environment": job.options.environment(),
                },
                "internalParameters": {
                    "detbox": detbox.__version__,
                    "epoch": spec.epoch_ns // 10**9,
                    "seed": spec.seed,
                    "cpus": spec.cpus,
                    "cpuModel": spec.cpu_model,
                    "user": spec.user,
                    "buildRoot": {"sha256": job.root.digest},
                },
                "resolvedDependencies": dependencies(job),
            },
            "runDetails": {"builder": {"id": "urn:detbox:builder", "version": {"detbox": detbox.__version__}}},
        },
    }


def dependencies(job: Job) -> list[dict[str, Any]]:
    """The inputs: source files and the image by digest, added packages by version."""
    found: list[dict[str, Any]] = [
        {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(job.source.digests.items())
    ]
    found.append({"name": "image", "digest": {"sha256": job.root.image.digest}})
    for package in sorted(job.root.packages, key=str):
        name, version = quote(package.name), quote(package.version, safe="")
        found.append({"uri": f"pkg:deb/debian/{name}@{version}?arch={package.arch}"})
    return found


def text(job: Job, artefacts: dict[str, str], suite: str) -> str:
    """The statement as a file's content."""
    return json.dumps(statement(job, artefacts, suite), indent=1, sort_keys=True) + "\n"
