"""SAEs: in, the train store of some activations, and the validation store they are measured on meanwhile; out, each SAE variant in SAELens'
layout."""

from functools import partial

SAE_FILES = ("manifest.json", "run.json", "sae_weights.safetensors", "cfg.json", "sparsity.safetensors", "training.parquet")


rule train_sae:
    """One SAE variant on one hook."""
    input:
        store=graph.store_manifest("train"),
        validation=graph.validation_manifest,
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
    wildcard_constraints:
        sae=graph.alone(),
    threads: lambda wildcards: graph.cores_of_sae(wildcards)
    resources:
        mem_mb=lambda wildcards, attempt: graph.memory_of_saes(wildcards, attempt, [wildcards.sae]),
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        **code("pipeline.steps.train_sae"),
        architecture=lambda wildcards: graph.code_of("sae", wildcards),
        spec=lambda wildcards: graph.spec("sae", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Training the SAE {wildcards.sae} on {wildcards.hook} of {wildcards.activations}"
    shell:
        "python -m pipeline.steps.train_sae --spec {params.spec:q} --store {input.store:q} --validation {input.validation:q}"
        " --out {params.out:q} > {log:q} 2>&1"


for names in graph.together():

    rule:
        """Variants of one entry that share their batches, on one hook: a change of one trains all of them again."""
        name:
            f"train_saes_{names[0]}"
        input:
            store=graph.store_manifest("train"),
            validation=graph.validation_manifest,
        output:
            manifest=graph.at("sae", "manifest.json").replace("{sae}", names[0]),
            others=[graph.at("sae", file).replace("{sae}", name) for name in names for file in SAE_FILES][1:],
        log:
            graph.log("sae", "train_saes.log").replace("{sae}", names[0]),
        benchmark:
            graph.log("sae", "train_saes.tsv").replace("{sae}", names[0])
        threads: partial(graph.cores_of_sae, name=names[0])
        resources:
            mem_mb=partial(graph.memory_of_saes, names=names),
            runtime=lambda wildcards, attempt: 240 * attempt,
        params:
            **code("pipeline.steps.train_saes"),
            architecture=partial(graph.code_of_saes, names=names),
            spec=partial(graph.spec_of_saes, names=names),
            out=subpath(output.manifest, ancestor=2),
        message:
            "Training SAEs together on {wildcards.hook} of {wildcards.activations}: " + ", ".join(names)
        shell:
            "python -m pipeline.steps.train_saes --spec {params.spec:q} --store {input.store:q} --validation {input.validation:q}"
            " --out {params.out:q} > {log:q} 2>&1"
