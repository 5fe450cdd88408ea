"""The study, read once for all rules; a wrong one ends here, with a line per fault."""

import sys

sys.path.insert(0, workflow.basedir)

from pipeline import environment
from pipeline.code import code
from pipeline.study.graph import Graph
from pipeline.study.open import open_study
from pipeline.study.sae_jobs import set_resources

configfiles = workflow.config_settings.configfiles or []
graph = Graph(open_study(config, configfiles or ["config.yaml"]))
# Before the first rule: what is set is read when a rule is made.
workflow.resource_settings.overwrite_resources = set_resources(workflow.resource_settings.overwrite_resources, graph.together())
environment.for_steps(workflow.basedir, graph.study.file.data_dir, configfiles, graph.tracking())


wildcard_constraints:
    dataset=r"[A-Za-z0-9._=+-]+",
    model=r"[A-Za-z0-9._=+-]+",
    activations=r"[A-Za-z0-9._=+-]+",
    split="train|validation|test",
    job=r"\d+",
    hook=r"[A-Za-z0-9._]+",
    sae=r"[A-Za-z0-9._=+-]+",
