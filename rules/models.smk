"""Models: in, a dataset, and the files of a model trained elsewhere; out, the weights of each model variant and its losses, with
the training curve, a sampled text and the like where it is trained here."""


rule train_model:
    """One variant of a model."""
    input:
        dataset=graph.dataset_manifest,
        files=graph.model_files,
    output:
        manifest=graph.at("model", "manifest.json"),
        run=graph.at("model", "run.json"),
        weights=graph.at("model", "model.safetensors"),
        config=graph.at("model", "config.json"),
        metrics=graph.at("model", "metrics.json"),
    log:
        graph.log("model", "train_model.log"),
    benchmark:
        graph.log("model", "train_model.tsv")
    threads: lambda wildcards: graph.study.models[wildcards.model].cores()
    resources:
        mem_mb=lambda wildcards, input, attempt: (3000 + 4 * int(input.size_mb)) * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        **code("pipeline.steps.train_model"),
        architecture=lambda wildcards: graph.code_of("model", wildcards),
        spec=lambda wildcards: graph.spec("model", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Training the model {wildcards.model}"
    shell:
        "python -m pipeline.steps.train_model --spec {params.spec:q} --dataset {input.dataset:q} --out {params.out:q} > {log:q} 2>&1"
