"""Report: in, everything; out, one page, its figures, a table."""


rule write_report:
    """The report of the study."""
    input:
        datasets=graph.all_of("dataset"),
        models=graph.all_of("model"),
        samples=graph.all_of("sample"),
        saes=graph.all_of("sae"),
        evaluation=graph.all_of("evaluation"),
        features=graph.all_of("features"),
        probes=graph.all_of("probe"),
    output:
        manifest=graph.at("report", "manifest.json"),
        run=graph.at("report", "run.json"),
        times=graph.at("report", "times.js"),
        page=report(
            graph.at("report", "index.html"),
            caption="../docs/captions/page.rst",
            category="Report",
            labels={"what": "the whole report"},
        ),
        table=report(
            graph.at("report", "saes.csv"),
            caption="../docs/captions/table.rst",
            category="Tables",
            labels={"what": "all SAEs"},
        ),
        figures=[
            report(
                graph.at("report", f"figures/{name}"),
                caption=f"../docs/captions/{kind}.rst",
                category="Figures",
                labels=labels,
            )
            for name, kind, labels in graph.figures()
        ],
    log:
        graph.log("report", "write_report.log"),
    benchmark:
        graph.log("report", "write_report.tsv")
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        **code("pipeline.steps.write_report", files=("pipeline/report/page.html.jinja",)),
        spec=lambda wildcards: graph.spec("report", wildcards),
        out=subpath(output.manifest, parent=True),
    message:
        "Writing the report"
    shell:
        "python -m pipeline.steps.write_report --spec {params.spec:q} --datasets {input.datasets:q} --models {input.models:q} --samples {input.samples:q}"
        " --saes {input.saes:q} --evaluation {input.evaluation:q} --features {input.features:q} --probes {input.probes:q}"
        " --out {params.out:q} > {log:q} 2>&1"
