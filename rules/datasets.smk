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
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        **code("pipeline.steps.make_dataset"),
        kind=lambda wildcards: graph.code_of("dataset", wildcards),
        spec=lambda wildcards: graph.spec("dataset", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Making the dataset {wildcards.dataset}"
    shell:
        "python -m pipeline.steps.make_dataset --spec {params.spec:q} --out {params.out:q} > {log:q} 2>&1"
