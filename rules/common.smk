"""The study, read once for all rules; a wrong one ends here, with a line per fault."""

import os
import sys

sys.path.insert(0, workflow.basedir)

from pipeline.code import code
from pipeline.study.open import open_study
from pipeline.study.graph import Graph

graph = Graph(open_study(config, workflow.config_settings.configfiles or ["config.yaml"]))

# A step runs as `python -m pipeline.steps.<step>`: from any folder, in a cluster's job too, by the Python that runs Snakemake.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [workflow.basedir, os.environ.get("PYTHONPATH")]))
if graph.study.file.data_dir:
    os.environ["SAEFLOW_DATA"] = graph.study.file.data_dir
os.environ["SAEFLOW_CONFIGFILES"] = " ".join(map(str, workflow.config_settings.configfiles or []))


wildcard_constraints:
    dataset=r"[A-Za-z0-9._+-]+",
    model=r"[A-Za-z0-9._=+-]+",
    activations=r"[A-Za-z0-9._=+-]+",
    split="train|validation|test",
    hook=r"[A-Za-z0-9._]+",
    sae=r"[A-Za-z0-9._=+-]+",
