"""Evaluation: in, an SAE, a store of the held-out split, the model; out, the metrics of each SAE as JSON."""


rule evaluate:
    """One SAE on the held-out split."""
    input:
        sae=rules.train_sae.output.manifest,
        store=graph.store_manifest(graph.study.file.evaluation.split),
        model=graph.model_manifest,
        dataset=graph.dataset_manifest,
    output:
        manifest=graph.at("evaluation", "manifest.json"),
        run=graph.at("evaluation", "run.json"),
        metrics=graph.at("evaluation", "metrics.json"),
    log:
        graph.log("evaluation", "evaluate.log"),
    benchmark:
        graph.log("evaluation", "evaluate.tsv")
    threads: graph.study.file.evaluation.threads
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        **code("pipeline.steps.evaluate"),
        architecture=lambda wildcards: graph.code_of("model", wildcards),
        sae_architecture=lambda wildcards: graph.code_of("sae", wildcards),
        spec=lambda wildcards: graph.spec("evaluation", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Evaluating the SAE {wildcards.sae} on {wildcards.hook} of {wildcards.activations}"
    shell:
        "python -m pipeline.steps.evaluate --spec {params.spec:q} --sae {input.sae:q} --store {input.store:q} --model {input.model:q}"
        " --dataset {input.dataset:q} --out {params.out:q} > {log:q} 2>&1"
