"""Every mistake in a study: one line that says where, what, what is allowed and what was probably meant."""

import subprocess
import sys

import pytest
import yaml

from pipeline.study.faults import StudyError
from pipeline.study.open import open_study, read_study

# What stands in the study, what stands there instead, where the fault is, and what its line has to say.
ONE_FAULT = {
    "unknown setting": ("    l1: 0.5", "    l2: 0.5", "saes.relu.l2", ["'l2' is not a setting", "did you mean 'l1'", "latents"]),
    "unknown nested setting": ("lr: 0.01", "rl: 0.01", "models.mlp.training.rl", ["'rl' is not a setting", "did you mean 'lr'"]),
    "unknown section": ("saes:\n", "sae: {}\nsaes:\n", "sae", ["'sae' is not a setting", "did you mean 'saes'", "datasets"]),
    "setting of another architecture": ("    k: 4", "    l1: 4", "saes.topk.l1", ["'l1' is not a setting", "latents"]),
    "architecture": ("architecture: topk", "architecture: top_k", "saes.topk.architecture",
                     ["'top_k' is not an architecture", "did you mean 'topk'", "relu"]),
    "architecture far from all": ("architecture: mlp", "architecture: 7", "models.mlp.architecture",
                                  ["'7' is not an architecture", "gpt", "mlp"]),
    "architecture missing": ("    architecture: mlp\n", "", "models.mlp.architecture", ["is missing", "gpt", "mlp"], -1),
    "truth value for a whole number": ("seed: 3", "seed: yes", "models.mlp.seed", ["a number is expected", "not a truth value"]),
    "truth value for a number": ("lr: 0.01", "lr: on", "models.mlp.training.lr", ["a number is expected", "not a truth value"]),
    "text for a number": ("lr: 0.01", "lr: fast", "models.mlp.training.lr", ["a number is expected", "'fast'"]),
    "negative seed": ("seed: 3", "seed: -1", "models.mlp.seed", ["-1", "at least 0"]),
    "seed too large": ("seed: 3", "seed: 4294967296", "models.mlp.seed", ["4294967296", "below 4294967296"]),
    "half a step": ("epochs: 2", "epochs: 2.5", "models.mlp.training.epochs", ["a whole number is expected", "2.5"]),
    "zero epochs": ("epochs: 2", "epochs: 0", "models.mlp.training.epochs", ["0", "at least 1"]),
    "learning rate of zero": ("lr: 0.01", "lr: 0", "models.mlp.training.lr", ["above 0"]),
    "infinite": ("lr: 0.01", "lr: .inf", "models.mlp.training.lr", ["a finite number is expected"]),
    "not a number": ("lr: 0.01", "lr: .nan", "models.mlp.training.lr", ["a finite number is expected"]),
    "nothing": ("lr: 0.01", "lr:", "models.mlp.training.lr", ["a number is expected", "null"]),
    "value of a choice": ("lr: 0.01", "lr: 0.01\n      decay: al", "models.mlp.training.decay",
                          ["'al'", "did you mean 'all'", "matrices"], 1),
    "mapping for a list": ("hooks: [layer1, layer2]", "hooks: {layer1: 1}", "activations.acts.hooks", ["a list is expected", "a mapping"]),
    "empty list": ("hidden: [8, 16]", "hidden: []", "models.mlp.hidden", ["at least 1"]),
    "value inside a list": ("hidden: [8, 16]", "hidden: [8, x]", "models.mlp.hidden[1]", ["a number is expected", "'x'"]),
    "line of a list": ("hidden: [8, 16]", "hidden:\n      - 8\n      - x\n      - 7", "models.mlp.hidden[1]", ["'x'"], 2),
    "rule over two settings": ("hidden: [8, 16]", "hidden: [8]", "models.mlp.batch_norm", ["no hidden layer 2"], -3),
    "more rows than there are": ("    train: 100", "    train: 10000000000", "datasets.rows", ["10,000,000,040", "1,600,000,000"], -2),
    "unknown dataset": ("dataset: rows", "dataset: row", "models.mlp.dataset", ["'row' is not a dataset", "did you mean 'rows'"]),
    "unknown model": ("    model: mlp", "    model: mpl", "activations.acts.model", ["'mpl' is not a model", "did you mean 'mlp'"]),
    "unknown activations": ("activations: acts\n    l1", "activations: act\n    l1", "saes.relu.activations",
                            ["'act'", "did you mean 'acts'"]),
    "unknown hook of a model": ("[layer1, layer2]", "[layer1, layer2, layer3]", "activations.acts.hooks[2]",
                                ["'layer3' is not a hook of mlp", "did you mean", "layer1"]),
    "hook that is not recorded": ("hooks: [layer2]", "hooks: [layer9]", "saes.topk.hooks[0]",
                                  ["'layer9' is not a hook of activations.acts", "layer1"]),
    "split that no dataset has": ("    model: mlp", "    splits: [train, validation, tset]\n    model: mlp", "activations.acts.splits[2]",
                                  ["'tset'", "did you mean 'test'"]),
    "split that SAEs need": ("activations:\n  acts:\n", "features: {split: validation}\nactivations:\n  acts:\n    splits: [validation]\n",
                             "activations.acts.splits", ["'train' is missing", "SAEs"], 3),
    "split that evaluation needs": ("saes:\n", "evaluation: {split: test}\nsaes:\n", "activations.acts.splits", ["'test' is missing"], -3),
    "shards of broken chunks": ("    model: mlp", "    chunk_rows: 64\n    shard_rows: 100\n    model: mlp", "activations.acts.shard_rows",
                                ["100", "not a multiple of chunk_rows, 64"], 1),
    "shards that no good chunks divide": ("    model: mlp", "    shard_rows: 100003\n    model: mlp", "activations.acts.shard_rows",
                                          ["100,003 rows cannot be cut into chunks", "suit layer1", "or give chunk_rows"]),
    "sparse hook that is not recorded": ("    model: mlp", "    sparse: [layer3]\n    model: mlp", "activations.acts.sparse[0]",
                                         ["'layer3' is not one of hooks", "layer1, layer2"]),
    "covariance of a hook that is not recorded": ("    model: mlp", "    covariance: [layer1, layr2]\n    model: mlp",
                                                  "activations.acts.covariance[1]",
                                                  ["'layr2' is not one of hooks", "did you mean 'layer2'"]),
    "hook twice": ("[layer1, layer2]", "[layer1, layer1]", "activations.acts.hooks", ["'layer1' stands twice"]),
    "hook with the name of another array": ("[layer1, layer2]", "[layer1, layer2, token]", "activations.acts.hooks[2]",
                                            ["'token' cannot be a hook's name", "sinks"]),
    "type that is none": ("    model: mlp", "    dtype: float8\n    model: mlp", "activations.acts.dtype",
                          ["'float8'", "float16", "bfloat16"]),
    "what is left out": ("    model: mlp", "    leave_out: specials\n    model: mlp", "activations.acts.leave_out",
                         ["did you mean 'special'"]),
    "sinks below the median": ("    model: mlp", "    sinks_above: 1\n    model: mlp", "activations.acts.sinks_above", ["above 1"]),
    "compression": ("    model: mlp", "    compression: gzip\n    model: mlp", "activations.acts.compression", ["'gzip'", "zstd", "blosc"]),
    "no job": ("    model: mlp", "    jobs: 0\n    model: mlp", "activations.acts.jobs", ["0", "at least 1"]),
    "half a job": ("    model: mlp", "    jobs: 1.5\n    model: mlp", "activations.acts.jobs", ["a whole number is expected"]),
    "too many jobs": ("    model: mlp", "    jobs: 1001\n    model: mlp", "activations.acts.jobs", ["1001", "at most 1000"]),
    "no memory": ("    model: mlp", "    memory_mb: 0\n    model: mlp", "activations.acts.memory_mb", ["0", "at least 1"]),
    "a folder for an address": ("    model: mlp", "    location: /data/stores\n    model: mlp", "activations.acts.location",
                                ["an address is expected, s3://", "'/data/stores'"]),
    "an address of another kind": ("    model: mlp", "    location: ftp://host/stores\n    model: mlp", "activations.acts.location",
                                   ["an address is expected", "gs://"]),
    "an address without a bucket": ("    model: mlp", "    location: s3:///stores\n    model: mlp", "activations.acts.location",
                                    ["an address is expected", "a bucket"]),
    "study name with a slash": ("name: small", "name: a/b", "name", ["a name becomes a folder", "'a/b'"]),
    "study name of dots": ("name: small", "name: ..", "name", ["a name becomes a folder", "'..'"]),
    "name ending in a dot": ("name: small", "name: a.", "name", ["a name becomes a folder"]),
    "name of a number": ("name: small", "name: 7", "name", ["text is expected, not 7"]),
    "entry with an equals sign": ("  relu:", "  re=lu:", "saes.re=lu", ["a name becomes a folder", "'re=lu'"]),
    "entry that is no mapping": ("  topk:", "  other: 3\n  topk:", "saes.other", ["a mapping of settings is expected", "architecture"]),
    "key twice": ("    k: 4", "    k: 4\n    k: 5", "saes.topk.k", ["stands twice"], 1),
    "entry twice": ("  topk:", "  relu:", "saes.relu", ["stands twice"]),
    "sweep over nothing": ("    k: 4", "    k: 4\n    sweep: {seed: []}", "saes.topk.sweep.seed", ["at least one value"], 1),
    "sweep that is no list": ("    k: 4", "    sweep: {k: 4}", "saes.topk.sweep.k", ["a list of at least one value"]),
    "sweep that is no mapping": ("    k: 4", "    sweep: [4]", "saes.topk.sweep", ["a mapping of settings to lists"]),
    "one swept value": ("    k: 4", "    sweep:\n      k: [1, 2, x]", "saes.topk.sweep.k[2]", ["a number is expected", "'x'"], 1),
    "one nested swept value": ("    k: 4", "    sweep:\n      training.lr: [1, -1]", "saes.topk.sweep.training.lr[1]",
                               ["-1", "above 0"], 1),
    "unknown swept setting": ("    k: 4", "    sweep:\n      ks: [1]", "saes.topk.sweep.ks[0]",
                              ["'ks' is not a setting", "did you mean 'k'"], 1),
    "swept twice": ("    k: 4", "    sweep: {k: [8, 8]}", "saes.topk.sweep", ["topk_k=8"]),
    "swept twice, written differently": ("    k: 4", "    sweep: {k: [8, '8.0']}", "saes.topk.sweep", ["topk_k=8"]),
    "sweep of what has to be an entry": ("    k: 4", "    sweep: {hooks: [[layer1]]}", "saes.topk.sweep.hooks", ["cannot be swept"]),
    "sweep that makes no folder name": ("lr: 0.01", "lr: 0.01\n    sweep: {training.schedule: [{shape: cosine}]}", "models.mlp.sweep",
                                        ["cannot be a folder's name"], 1),
    "probe of the wrong length": ("saes:\n", "probe:\n  samples:\n    - {input: [1, 2], expected: 1}\nsaes:\n", "probe.samples[0].input",
                                  ["2 numbers", "10 in a row"], 2),
    "probe without samples": ("saes:\n", "probe: {samples: []}\nsaes:\n", "probe.samples", ["at least 1"]),
    "warm-up of no penalty": ("    k: 4", "    k: 4\n    training: {sparsity_warmup: 0.1}", "saes.topk.training.sparsity_warmup",
                              ["has no effect", "no sparsity penalty", "leave it out"], 1),
    "warm-up of a penalty of weight 0": ("    l1: 0.5", "    l1: 0\n    training: {sparsity_warmup: 0.1}",
                                         "saes.relu.training.sparsity_warmup", ["has no effect"], 1),
    "penalty of weight 0": ("    l1: 0.5", "    l1: 0\n    penalty: plain", "saes.relu.penalty", ["has no effect", "`l1` is 0"], 1),
    "annealing at once": ("    k: 4", "    k: 4\n    k_start: 8\n    k_anneal: 0", "saes.topk.k_start", ["with `k_anneal: 0`"], 1),
    "annealing from nowhere": ("    k: 4", "    k: 4\n    k_anneal: 0.2", "saes.topk.k_anneal", ["has no effect without `k_start`"], 1),
    "centre that drawn weights do not take": ("    l1: 0.5", "    l1: 0.5\n    init: linear\n    b_dec: zero", "saes.relu.b_dec",
                                              ["has no effect with `init: linear`", "leave one of them out"], 2),
    "table model on tokens": ("    kind: pointer\n    train: 100\n    validation: 20\n    test: 20\n", 
                              "    kind: text\n    files: [a.txt]\n", "models.mlp.dataset", ["'rows' holds tokens", "mlp takes table"], 5),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_FAULT.values(), ids=ONE_FAULT.keys())
def test_one_mistake_gives_one_line_at_its_place(case, text, read, tmp_path):
    old, new, path, words, offset = (*case, 0)[:5]
    before, found, after = text.partition(old)
    assert found and old not in after
    with pytest.raises(StudyError) as caught:
        read(before + new + after)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{tmp_path / 'study0.yaml'}:{before.count(chr(10)) + 1 + offset}: {path}: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    l1: 0.5", "    training: {sparsity_warmup: 0.1}\n    penalty: plain\n    sweep: {l1: [0, 0.5]}"),
        ("    l1: 0.5", "    b_dec: zero\n    sweep: {init: [tied, linear]}"),
        ("    k: 4", "    k: 4\n    k_anneal: 0.2\n    k_start: 8\n    training: {sparsity_warmup: 0, resample: [0.2]}"),
    ],
)
def test_what_changes_something_in_a_variant_is_not_refused(text, read, old, new):
    read(text.replace(old, new))


def test_the_study_the_mistakes_are_made_in_is_valid(text, read):
    assert list(read(text).saes) == [("acts", "layer1", "relu"), ("acts", "layer2", "relu"), ("acts", "layer2", "topk")]


def test_every_mistake_is_told_at_once(text, read):
    wrong = text.replace("lr: 0.01", "rl: 0.01").replace("k: 4", "k: no").replace("train: 100", "train: -1")
    with pytest.raises(StudyError) as caught:
        read(wrong)
    told = sorted(line.split(": ")[1] for line in str(caught.value).splitlines())
    assert told == ["datasets.rows.train", "models.mlp.training.rl", "saes.topk.k"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.yaml", None, ["No such file"]),
        ("broken.yaml", b"name: x\ndatasets: [1\n", [":3: "]),
        ("tab.yaml", b"name: x\n\tdatasets: 1\n", [":2: "]),
        ("list.yaml", b"- 1\n", ["a mapping of settings, not a list"]),
        ("text.yaml", b"hello\n", ["a mapping of settings, not a str"]),
        ("binary.yaml", b"\xff\xfe\x00", ["UTF-8"]),
        ("jinja.yaml", b"name: {{ study }}\n", [":1: "]),
        ("tag.yaml", b"name: !secret x\n", [":1: ", "!secret"]),
        ("date.yaml", b"name: 2024-99-99\n", [":1: "]),
    ],
)  # fmt: skip
def test_a_file_that_is_no_study_is_named(tmp_path, name, content, words):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StudyError) as caught:
        read_study([file])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file))
    for word in words:
        assert word in str(caught.value)


def test_an_empty_file_lacks_a_name_and_datasets(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(StudyError) as caught:
        read_study([tmp_path / "empty.yaml"])
    assert [line.split(": ")[1:] for line in str(caught.value).splitlines()] == [["name", "is missing"], ["datasets", "is missing"]]


def test_a_fault_in_an_overlay_names_the_overlay(text, read, tmp_path):
    with pytest.raises(StudyError, match=rf"^{tmp_path}/study1.yaml:3: saes.topk.k: ") as caught:
        read(text, "saes:\n  topk:\n    k: x\n")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("architecture: topk", "architecture: [topk]", "saes.topk.architecture"),
        ("kind: pointer", "kind: {pointer: 1}", "datasets.rows.kind"),
        ("    k: 4", "    sweep: {on: [4]}", "saes.topk.sweep"),
        ("    k: 4", "    sweep: {1: [4]}", "saes.topk.sweep"),
        ("    k: 4", "    sweep: {sweep.k: [[4]]}", "saes.topk.sweep"),
        ("    k: 4", "    on: 4", "saes.topk"),
        ("  topk:", "  1:", "saes"),
    ],
)
def test_what_yaml_makes_of_a_key_or_tag_is_no_traceback(text, read, old, new, path):
    with pytest.raises(StudyError) as caught:
        read(text.replace(old, new))
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("    k: 4", "    k: 64", "saes.topk.k"),  # of 32 latents
        ("  rows:", "  rows:\n    sweep: {kind: [pointer]}", "datasets.rows.sweep.kind"),
        ("    k: 4", "    sweep: {training.lr.x: [1]}", "saes.topk.training.lr"),
        ("    k: 4", "    training: {lr: 0.1}\n    sweep: {training.lr.x: [1]}", "saes.topk.sweep.training.lr.x"),
        ("    k: 4", "    training: 3\n    sweep: {training.lr: [0.1]}", "saes.topk.training"),
    ],
)
def test_what_would_fail_later_or_be_ignored_is_a_fault(text, read, old, new, path):
    with pytest.raises(StudyError) as caught:
        read(text.replace(old, new))
    assert f": {path}" in str(caught.value)


PROBE = "probe:\n  samples:\n    - {input: [1, 2, 3, 4, 0, 1, 2, 3, 4, 0], expected: 1}\n"


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("kind: pointer", "kind: pointre", "datasets.rows.kind"),
        ("train: 100", "train: -1", "datasets.rows.train"),
        ("    model: mlp", "    modle: mlp", "activations.acts"),
        ("hooks: [layer1, layer2]", "hooks: 3", "activations.acts.hooks"),
        ("hidden: [8, 16]", "hidden: [8, x]", "models.mlp.hidden[1]"),
        ("  relu:", "  're,lu':", "saes.re,lu"),
    ],
)
def test_one_mistake_makes_nothing_else_look_wrong(text, read, old, new, path):
    with pytest.raises(StudyError) as caught:
        read(PROBE + text.replace(old, new))
    assert [line for line in str(caught.value).splitlines() if not line.split(": ")[1].startswith(path)] == []


def test_snakemake_exits_with_the_lines_and_nothing_else(text, tmp_path):
    (tmp_path / "wrong.yaml").write_text(text.replace("k: 4", "k: x"))
    run = subprocess.run(
        [sys.executable, "-c", "import sys, yaml; from pipeline.study.open import open_study;"
         "open_study(yaml.safe_load(open(sys.argv[1])), [sys.argv[1]])", tmp_path / "wrong.yaml"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stdout == ""
    first, *faults = run.stderr.splitlines()
    assert first == "the study cannot run:"
    assert len(faults) == 1
    assert faults[0].startswith(f"{tmp_path / 'wrong.yaml'}:{text[: text.index('k: 4')].count(chr(10)) + 1}: saes.topk.k: ")


def test_open_study_takes_settings_that_snakemake_merged(text, tmp_path):
    """`--config` changes settings that stand in no file, and hands every value over as text."""
    (tmp_path / "study.yaml").write_text(text)
    settings = yaml.safe_load(text)
    settings["saes"]["topk"]["k"] = "8"
    settings["models"]["mlp"]["training"]["lr"] = "1e-3"
    study = open_study(settings, [tmp_path / "study.yaml"])
    assert study.saes["acts", "layer2", "topk"].k == 8
    assert study.models["mlp"].training.lr == 1e-3


def test_a_study_is_read_without_torch(project):
    """Parsing and building the graph stay fast: nothing heavy is loaded."""
    script = (
        "import importlib, pkgutil, sys, pipeline.code, pipeline.study\n"
        "names = [found.name for found in pkgutil.walk_packages(pipeline.study.__path__, 'pipeline.study.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "from pipeline.study.graph import Graph\n"
        "Graph(sys.modules['pipeline.study.open'].read_study(['config.yaml'])).figures()\n"
        "print(len(names), *sorted({'torch', 'numpy', 'zarr', 'pandas', 'pyarrow', 'matplotlib'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True)
    modules, *heavy = run.stdout.split()
    assert int(modules) > 15
    assert heavy == []
