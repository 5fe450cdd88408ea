"""Datasets: in, files of the user or nothing; out, the splits of each dataset as Parquet tables or token arrays."""


rule make_dataset:
    """A dataset and its splits."""
    input:
        graph.sources,
    output:
        manifest=graph.at("dataset", "manifest.json"),
        run=graph.at("dataset", "run.json"),
    log:
        graph.log("dataset", "make_dataset.log"),
    benchmark:
        graph.log("dataset", "make_dataset.tsv")
    threads: lambda wildcards: graph.study.datasets[wildcards.dataset].cores()
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        **code("pipeline.steps.make_dataset"),
        kind=lambda wildcards: graph.code_of("dataset", wildcards),
        spec=lambda wildcards: graph.spec("dataset", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Making the dataset {wildcards.dataset}"
    shell:
        "RAYON_NUM_THREADS={threads} python -m pipeline.steps.make_dataset --spec {params.spec:q} --out {params.out:q} > {log:q} 2>&1"
