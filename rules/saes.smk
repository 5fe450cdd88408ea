"""SAEs: in, the train store of some activations; out, each SAE variant in SAELens' layout."""


rule train_sae:
    """One SAE variant on one hook."""
    input:
        store=graph.store_manifest("train"),
    output:
        manifest=graph.at("sae", "manifest.json"),
        run=graph.at("sae", "run.json"),
        weights=graph.at("sae", "sae_weights.safetensors"),
        config=graph.at("sae", "cfg.json"),
        sparsity=graph.at("sae", "sparsity.safetensors"),
        curve=graph.at("sae", "training.parquet"),
    log:
        graph.log("sae", "train_sae.log"),
    benchmark:
        graph.log("sae", "train_sae.tsv")
    threads: lambda wildcards: graph.sae_of(wildcards).threads
    resources:
        mem_mb=lambda wildcards, attempt: (2000 + 2 * graph.sae_of(wildcards).training.memory_mb) * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        **code("pipeline.steps.train_sae"),
        architecture=lambda wildcards: graph.code_of("sae", wildcards),
        spec=lambda wildcards: graph.spec("sae", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Training the SAE {wildcards.sae} on {wildcards.hook} of {wildcards.activations}"
    shell:
        "python -m pipeline.steps.train_sae --spec {params.spec:q} --store {input.store:q} --out {params.out:q} > {log:q} 2>&1"
