"""Activations: in, a model and its dataset; out, a sealed Zarr store of each split."""


rule harvest:
    """Shards of a store: hooks of a model over one split, in one pass. Jobs that share it write shards of their own."""
    input:
        model=graph.model_manifest,
        dataset=graph.dataset_manifest,
    output:
        part=graph.at("activations", "parts/{job}.json"),
    log:
        graph.log("activations", "harvest-{job}.log"),
    benchmark:
        graph.log("activations", "harvest-{job}.tsv")
    threads: lambda wildcards: graph.harvest_of(wildcards).threads
    resources:
        # memory_mb bounds batches, shards and sums of outer products; the rest is the libraries, the weights and the forward itself
        mem_mb=lambda wildcards, attempt: (2000 + graph.harvest_of(wildcards).memory_mb) * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        **code("pipeline.steps.harvest"),
        architecture=lambda wildcards: graph.code_of("model", wildcards),
        settings=lambda wildcards: graph.spec("store", wildcards),
        # what a function of resources gives is not compared: jobs and memory_mb decide no byte
        spec=lambda wildcards, resources: graph.spec("harvest", wildcards),
        out=subpath(output.part, ancestor=2),
    message:
        "Harvesting {wildcards.activations} over {wildcards.split}, job {wildcards.job}"
    shell:
        "python -m pipeline.steps.harvest --spec {params.spec:q} --model {input.model:q} --dataset {input.dataset:q} --out {params.out:q}"
        " > {log:q} 2>&1"


rule seal_store:
    """The manifest that makes a harvested store readable."""
    input:
        parts=graph.parts,
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
        # sums of outer products: of three shards ahead and one at hand, twice of two that are being read, merged, and one as it is added
        mem_mb=lambda wildcards, attempt: (1000 + 8 * graph.outer_mb(wildcards)) * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        **code("pipeline.steps.seal_store"),
        settings=lambda wildcards: graph.spec("store", wildcards),
        spec=lambda wildcards, resources: graph.spec("seal", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Sealing the store {wildcards.activations} over {wildcards.split}"
    shell:
        "python -m pipeline.steps.seal_store --spec {params.spec:q} --model {input.model:q} --dataset {input.dataset:q} --out {params.out:q}"
        " > {log:q} 2>&1"
