"""Activations: in, a model and its dataset; out, a sealed Zarr store of each split."""


rule harvest:
    """The shards of a store: hooks of a model over one split, in one pass."""
    input:
        model=graph.model_manifest,
        dataset=graph.dataset_manifest,
    output:
        part=graph.at("activations", "harvest.json"),
    log:
        graph.log("activations", "harvest.log"),
    benchmark:
        graph.log("activations", "harvest.tsv")
    threads: lambda wildcards: graph.study.activations[wildcards.activations].spec.threads
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        **code("pipeline.steps.harvest"),
        architecture=lambda wildcards: graph.code_of("model", wildcards),
        spec=lambda wildcards: graph.spec("activations", wildcards),
        out=subpath(output.part, parent=True),
    message:
        "Harvesting {wildcards.activations} over {wildcards.split}"
    shell:
        "python -m pipeline.steps.harvest --spec {params.spec:q} --model {input.model:q} --dataset {input.dataset:q} --out {params.out:q}"
        " > {log:q} 2>&1"


rule seal_store:
    """The manifest that makes a harvested store readable."""
    input:
        part=rules.harvest.output.part,
        model=graph.model_manifest,
        dataset=graph.dataset_manifest,
    output:
        manifest=graph.at("activations", "manifest.json"),
        run=graph.at("activations", "run.json"),
    log:
        graph.log("activations", "seal_store.log"),
    benchmark:
        graph.log("activations", "seal_store.tsv")
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        **code("pipeline.steps.seal_store"),
        spec=lambda wildcards: graph.spec("activations", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Sealing the store {wildcards.activations} over {wildcards.split}"
    shell:
        "python -m pipeline.steps.seal_store --spec {params.spec:q} --model {input.model:q} --dataset {input.dataset:q} --out {params.out:q}"
        " > {log:q} 2>&1"
