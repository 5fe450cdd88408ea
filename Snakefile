"""From a study to its report. The study is config.yaml, or what --configfile names; `make run` starts it."""

from snakemake.utils import min_version

min_version("9.20")

if not workflow.config_settings.configfiles:

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/datasets.smk"
include: "rules/models.smk"
include: "rules/activations.smk"
include: "rules/saes.smk"
include: "rules/evaluation.smk"
include: "rules/features.smk"
include: "rules/report.smk"


rule all:
    """The whole study, to its report."""
    default_target: True
    input:
        rules.write_report.output.manifest,
        graph.all_of("activations"),
    localrule: True
