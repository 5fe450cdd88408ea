"""The report: one page without a network, right numbers on it, nothing of the data taken for markup."""

import base64
import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pipeline.report.drawing import looks
from pipeline.report.figures import figures
from pipeline.report.page import page
from pipeline.report.tables import sae_table
from pipeline.study.names import without_seed

SPEC = {"title": None, "about": "", "features": 3, "contexts": 2, "name": "small"}
ENTRIES = {
    "models": {"gpt": "gpt"},
    "activations": {"mlp": "mlp"},
    "saes": {"topk_seed=0": "topk", "topk_seed=1": "topk", "dead": "dead"},
}


class Reader(HTMLParser):
    """The page's tables, attributes and text; fails when a tag is not closed by its own."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.attributes, self.text, self.cells, self.rows = [], [], "", [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *one) for one in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells = []
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            self.rows.append(self.cells)

    def handle_data(self, data):
        self.text += data if self.open and self.open[-1] not in ("script", "style") else ""
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def html(results) -> str:
    return page(results, figures(results, ENTRIES), SPEC)


def table(html: str, first: str) -> list[dict[str, str]]:
    """Rows of the table whose first heading this is."""
    rows = Reader(html).rows
    head = next(row for row in rows if row[0] == first)
    body = rows[rows.index(head) + 1 :]
    end = next((n for n, row in enumerate(body) if len(row) != len(head)), len(body))
    return [dict(zip(head, row, strict=True)) for row in body[:end]]


def test_it_needs_no_network_and_no_other_file(html):
    for tag, name, value in Reader(html).attributes:
        if name in ("src", "href"):
            assert value == "times.js" or value.startswith(("#", "data:image/svg+xml;base64,")), (tag, value)
    assert "@import" not in html
    assert "url(" not in html


def test_every_link_on_the_page_leads_somewhere(html):
    attributes = Reader(html).attributes
    assert {value[1:] for _, name, value in attributes if name == "href"} <= {value for _, name, value in attributes if name == "id"}


def test_it_is_the_same_whenever_it_is_written(results, html):
    assert page(results, figures(results, ENTRIES), SPEC) == html


def test_saes_that_differ_by_their_seed_are_one_row_with_a_range(html):
    topk, dead = table(html, "SAE")
    assert (topk["SAE"], topk["FVE"], topk["runs"]) == ("topk", "0.5000 (0.2500 – 0.7500)", "2")
    assert (dead["SAE"], dead["FVE"], dead["runs"]) == ("dead relu", "0.1250", "1")
    assert (dead["L0"], dead["dead"], dead["latents"]) == ("3.25", "50.0 %", "64")
    assert (dead["loss scorezero"], dead["loss scoremean"]) == ("0.8125", "–")
    assert (dead["losswith SAE"], dead["lossclean"]) == ("1.500", "1.000")
    assert dead["f > 0.01"] == "2.50"


def test_numbers_stand_with_what_they_were_measured_on(html):
    text = Reader(html).text
    assert "validation split, 4,321 rows" in text
    assert "Dead: no fire in any of these rows" in text


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([(0, 0)] * 3, None),
        ([(679, 0)] * 3, "blocks.0.mlp_out of mlp: 13.6 % of positions (special tokens)"),
        ([(0, 9)] * 3, "blocks.0.mlp_out of mlp: 0.2 % of rows (attention sinks)"),
        ([(679, 9)] * 3, "blocks.0.mlp_out of mlp: 13.6 % of positions (special tokens), 0.2 % of rows (attention sinks)"),
    ],
)
def test_what_was_not_measured_is_said_where_there_is_any(results, counts, said):
    saes = [
        replace(sae, metrics={**sae.metrics, "left_out": out, "flagged": flagged})
        for sae, (out, flagged) in zip(results.saes, counts, strict=True)
    ]
    some = replace(results, saes=saes)
    text = Reader(page(some, figures(some, ENTRIES), SPEC)).text
    assert (f"Not measured: {said}." in text) if said else ("Not measured" not in text)
    (line, *_) = csv.DictReader(io.StringIO(sae_table(some)))
    assert (line["left_out"], line["flagged"]) == tuple(str(count) for count in counts[0])


def test_shares_that_were_not_measured_have_a_range_over_models(results):
    """Two variants of the activations, of models that differ by their seed."""
    saes = [
        replace(sae, activations=f"mlp_seed={n}", metrics={**sae.metrics, "flagged": 4321 * n}) for n, sae in enumerate(results.saes[:2])
    ]
    some = replace(results, saes=saes)
    drawn = figures(some, {**ENTRIES, "activations": {"mlp_seed=0": "mlp", "mlp_seed=1": "mlp"}})
    assert "blocks.0.mlp_out of mlp: 25.0 % (0.0 % – 50.0 %) of rows (attention sinks)" in Reader(page(some, drawn, SPEC)).text


def test_models_have_a_row_for_each_split(html):
    train, validation = table(html, "model")
    assert (train["model"], train["parameters"], train["split"], train["loss"], train["scored positions"]) == (
        "gpt",
        "98,765",
        "train",
        "2.000",
        "77",
    )
    assert (validation["model"], validation["split"], validation["loss"]) == ("", "validation", "2.500")


def training(html: str) -> list[dict[str, str]]:
    rows = [row for row in Reader(html).rows if row]
    head = next(row for row in rows if row[:2] == ["SAE", "trained on"])
    count = next(n for n, row in enumerate(rows[rows.index(head) + 1 :]) if len(row) != len(head))
    return [dict(zip(head, row, strict=True)) for row in rows[rows.index(head) + 1 :][:count]]


def test_training_is_told_with_its_window_and_what_was_held_out(html):
    topk, dead = training(html)
    assert (topk["SAE"], topk["rows"], topk["steps"], topk["learningrate"]) == ("topk", "250,000", "2", "0.1000")
    assert (topk["held-outFVE"], topk["held-outL0"]) == ("0.6250 (0.5000 – 0.7500)", "4.50")
    assert (dead["held-outFVE"], dead["dead"], dead["window ofdead, rows"]) == ("0.5000", "25.0 %", "50,000")
    assert not {"snapshotsafter steps", "given newdirections"} & topk.keys(), "nobody has any"
    assert "Told while training" not in html


def test_a_transcoder_shows_where_it_leads_and_what_was_told_of_it(results_with_transcoders):
    entries = {"models": {"gpt": "gpt"}, "activations": {"mlp": "mlp"}, "saes": {"plain": "plain", "skip": "skip"}}
    html = page(results_with_transcoders, figures(results_with_transcoders, entries), SPEC)
    plain, skip = table(html, "SAE")
    leads = "blocks.0.mlp_hidden →\N{NO-BREAK SPACE}blocks.0.mlp_out of mlp"
    assert (plain["SAE"], plain["on"], skip["SAE"]) == ("plain topk transcoder", leads, "skip topk skip-transcoder")
    assert "of a transcoder those of the hook it predicts" in Reader(html).text
    first, second = training(html)
    assert (first["trained on"], first["weightsof step"], first["snapshotsafter steps"]) == (leads, "last", "–")
    assert (second["weightsof step"], second["snapshotsafter steps"], second["given newdirections"]) == ("750", "20, 500, 1,000", "17")
    assert f"Told while training: skip on {leads}: L0 did not fall <under> the penalty." in Reader(html).text


def test_many_names_are_told_apart():
    """More of them than there are colours, and than there are markers."""
    names = [f"name{n}" for n in range(40)]
    found = looks([*names, *names])
    assert list(found) == names
    assert len({(look.colour, look.marker) for look in found.values()}) == 40
    assert len({(look.colour, look.style) for look in found.values()}) == 40


def test_latents_shown_are_spread_from_the_rarest_to_the_most_frequent(html):
    """Of 20 that fire in 1 % to 20 % of rows, three: the first, the middle, the last."""
    assert re.findall(r"<b>#(\d+)</b><span>fires in ([\d.]+) % of rows", html) == [("19", "1.0"), ("9", "11.0"), ("0", "20.0")]
    text = Reader(html).text
    assert "20 of 64 latents fire on the train split" in text
    assert "0 of 64 latents fire on the train split" in text


def test_contexts_are_as_many_as_asked_for_and_show_the_text(html):
    shown = re.findall(r'<span class="v">([^<]*)</span><span class="t mono">(.*?)</span></div>', html, re.DOTALL)
    assert [value for value, _ in shown] == ["4.00", "3.50"] * 3
    for _, text in shown:
        assert Reader(f"<p>{text}</p>").text.replace("\n", "") == "<b> lord↵&amp;"
    first = shown[0][1]
    assert re.findall(r"--a:([\d.]+)", first) == ["0.25", "1.00"], "strength is relative to the strongest token"
    assert '">&lt;b&gt;</span>' in first
    assert '"> lord</span>' in first


def test_nothing_of_the_data_or_the_study_is_markup(results):
    html = page(results, figures(results, ENTRIES), {**SPEC, "title": "<script>1</script>", "about": "a < b & c"})
    reader = Reader(html)
    assert "<script>1" not in html
    assert "<script>1</script>" in reader.text
    assert "a < b & c" in reader.text
    assert "<i>" in reader.text, "a setting with a bracket, shown as it is"
    assert "<i>" not in html


def test_the_study_can_be_walked_back_from_the_page(html, results):
    rows = {row["artifact"]: row for row in table(html, "artifact")}
    assert list(rows) == ["datasets/text", "models/gpt", "samples/gpt"] + [
        f"{stage}/mlp/blocks.0.mlp_out/{name}"
        for name in ("topk_seed=0", "topk_seed=1", "dead")
        for stage in ("saes", "evaluation", "features")
    ]
    for name, artifact in results.artifacts().items():
        assert rows[name]["hash"] == artifact.hash[:16]
    assert rows["saes/mlp/blocks.0.mlp_out/topk_seed=1"]["seed"] == "1"


def test_figures_are_those_that_the_workflow_announces(results, graph):
    drawn = figures(results, ENTRIES)
    assert set(drawn) == {name for name, _, _ in graph.figures()}
    assert figures(results, ENTRIES) == drawn, "equal numbers give equal bytes"
    for figure in drawn.values():
        assert figure.svg.startswith(b"<?xml")
        assert b"<dc:date>" not in figure.svg


def test_figures_on_the_page_are_the_files(results, html):
    drawn = figures(results, ENTRIES)
    embedded = [base64.b64decode(found) for found in re.findall(r"base64,([^\"]*)", html)]
    assert sorted(embedded) == sorted(figure.svg for figure in drawn.values())


def test_a_study_without_saes_has_a_report(results_without_saes):
    html = page(results_without_saes, figures(results_without_saes, ENTRIES), SPEC)
    assert len(table(html, "model")) == 2
    assert "FVE" not in html


def test_a_probe_shows_every_sample(results_with_probe):
    html = page(results_with_probe, figures(results_with_probe, ENTRIES), SPEC)
    row = table(html, "input")[0]
    assert row == {"input": "1 2.5", "expected": "3", "output": "2.9876", "active": "7", "strongest latents": "#5 1.250"}


def test_a_probe_names_its_own_threshold(results_with_probe):
    html = page(results_with_probe, figures(results_with_probe, ENTRIES), SPEC)
    assert "Active: latents above 0.75" in Reader(html).text


def test_the_csv_has_every_sae_with_all_digits(results):
    rows = list(csv.DictReader(io.StringIO(sae_table(results))))
    assert [(row["sae"], row["seed"], float(row["fve"])) for row in rows] == [
        ("topk_seed=0", "0", 0.25),
        ("topk_seed=1", "1", 0.75),
        ("dead", "0", 0.125),
    ]
    for row, sae in zip(rows, results.saes, strict=True):
        for name in ("mse_per_dim", "relative_reconstruction_bias", "l0_above", "loss_score_zero"):
            assert float(row[name]) == sae.metrics[name]
        assert row["loss_score_mean"] == ""


@pytest.mark.parametrize(
    ("variant", "shared"),
    [
        ("topk", "topk"),
        ("topk_seed=1", "topk"),
        ("topk_k=32_seed=1", "topk_k=32"),
        ("topk_seed=12_k=32", "topk_k=32"),
        ("my_seed_seed=3", "my_seed"),
        ("topk_training.seed=1", "topk_training.seed=1"),
    ],
)
def test_what_variants_share_is_their_name_without_the_seed(variant, shared):
    assert without_seed(variant) == shared


def test_models_of_other_depths_and_hooks_stand_in_one_table(unlike_models):
    drawn = figures(unlike_models, {"models": {"gpt": "gpt", "bdh": "bdh"}, "activations": {}})
    assert set(drawn) == {"model_gpt.svg", "model_bdh.svg", "tradeoff.svg"}
    html = page(unlike_models, drawn, SPEC)
    text = Reader(html).text
    assert "gpt: 500 tokens of 60 types; silent: mlp_hidden with |a| < 0.01; polysemanticity: mlp_out" in text
    assert "bdh: 500 tokens of 60 types; silent: xy_sparse with a = 0; polysemanticity: xy_sparse" in text
    cells = Reader(html).rows
    assert ["model", "quantity", "block 0", "block 1", "block 2"] in cells
    assert ["gpt", "silent", "25.0 %", "", ""] in cells
    assert ["bdh", "silent", "90.0 %", "80.0 %", "70.0 %"] in cells
    found = {row[0]: row[1:] for row in cells if len(row) == 10}
    assert found["gpt"] == ["12.25", "25.0 %", "0.0 %", "0.0 %", "2.500", "6.2 %", "–", "–", "1"]
    assert found["bdh"] == ["12.25", "80.0 %", "10.0 %", "0.0 %", "2.000", "–", "–", "–", "1"]
    assert "<gpt> goes on" in text
    assert "the first model's" not in text
