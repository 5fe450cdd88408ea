"""Features: in, an SAE and a store; out, Parquet tables of its latents and their contexts, and the study's samples followed through it."""


rule describe_features:
    """The latents of one SAE: statistics, and the contexts in which each is strongest."""
    input:
        sae=rules.train_sae.output.manifest,
        store=graph.store_manifest(graph.study.file.features.split),
        dataset=graph.dataset_manifest,
    output:
        manifest=graph.at("features", "manifest.json"),
        run=graph.at("features", "run.json"),
        latents=graph.at("features", "latents.parquet"),
        contexts=graph.at("features", "contexts.parquet"),
    log:
        graph.log("features", "describe_features.log"),
    benchmark:
        graph.log("features", "describe_features.tsv")
    threads: graph.study.file.features.threads
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        **code("pipeline.steps.describe_features"),
        architecture=lambda wildcards: graph.code_of("sae", wildcards),
        spec=lambda wildcards: graph.spec("features", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Describing the latents of {wildcards.sae} on {wildcards.hook} of {wildcards.activations}"
    shell:
        "python -m pipeline.steps.describe_features --spec {params.spec:q} --sae {input.sae:q} --store {input.store:q}"
        " --dataset {input.dataset:q} --out {params.out:q} > {log:q} 2>&1"


rule probe:
    """The study's samples through a model and one of its SAEs."""
    input:
        sae=rules.train_sae.output.manifest,
        model=graph.model_manifest,
    output:
        manifest=graph.at("probe", "manifest.json"),
        run=graph.at("probe", "run.json"),
        samples=graph.at("probe", "probe.json"),
    log:
        graph.log("probe", "probe.log"),
    benchmark:
        graph.log("probe", "probe.tsv")
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        **code("pipeline.steps.probe"),
        architecture=lambda wildcards: graph.code_of("model", wildcards),
        sae_architecture=lambda wildcards: graph.code_of("sae", wildcards),
        spec=lambda wildcards: graph.spec("probe", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Probing {wildcards.sae} on {wildcards.hook} of {wildcards.activations}"
    shell:
        "python -m pipeline.steps.probe --spec {params.spec:q} --sae {input.sae:q} --model {input.model:q} --out {params.out:q} > {log:q} 2>&1"
