"""Models: in, a dataset, and the files of a model trained elsewhere; out, the weights of each model variant and its losses, with
the training curve and the like where it is trained here; and a text that a language model goes on with."""


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


rule sample_text:
    """A text that a language model goes on with."""
    input:
        model=rules.train_model.output.manifest,
        dataset=graph.dataset_manifest,
    output:
        manifest=graph.at("sample", "manifest.json"),
        run=graph.at("sample", "run.json"),
        sample=graph.at("sample", "sample.json"),
    log:
        graph.log("sample", "sample_text.log"),
    benchmark:
        graph.log("sample", "sample_text.tsv")
    threads: lambda wildcards: graph.study.models[wildcards.model].threads
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        **code("pipeline.steps.sample_text"),
        architecture=lambda wildcards: graph.code_of("model", wildcards),
        spec=lambda wildcards: graph.spec("sample", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Sampling a text of the model {wildcards.model}"
    shell:
        "python -m pipeline.steps.sample_text --spec {params.spec:q} --model {input.model:q} --dataset {input.dataset:q} --out {params.out:q}"
        " > {log:q} 2>&1"
