"""Datasets made as the step makes them."""

import pytest

from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.study.kinds import kinds


@pytest.fixture
def make(tmp_path):
    """Publishes a dataset of some kind: `make(module, folder, kind=..., ...)`."""

    def make(module, folder: str = "dataset", **settings) -> Artifact:
        spec = kinds("datasets")[settings["kind"]].model_validate(settings)
        with publishing(tmp_path / folder, "dataset", spec.settings(), {}) as draft:
            module.write(spec, draft)
        return Artifact.open(tmp_path / folder / MANIFEST)

    return make
