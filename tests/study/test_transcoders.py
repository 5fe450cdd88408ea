"""SAEs that predict another hook than they read: what a study may ask for, and what steps are told."""

import json
from types import SimpleNamespace

import pytest

from pipeline.study.activations import Activations
from pipeline.study.faults import StudyError
from pipeline.study.graph import Graph
from pipeline.study.sae_faults import sae_faults
from pipeline.study.saes.topk import TopK

READS = "    hooks: [layer2]\n"
PREDICTS = "    hooks: [layer1]\n    outputs: [layer2]\n"


def test_steps_are_told_which_hook_is_predicted(text, read):
    graph = Graph(read(text.replace(READS, PREDICTS)))
    for hook, sae, output in (("layer1", "topk", "layer2"), ("layer1", "relu", "layer1"), ("layer2", "relu", "layer2")):
        at = SimpleNamespace(activations="acts", hook=hook, sae=sae)
        assert graph.output_of(at) == output
        for stage in ("evaluation", "features"):
            spec = json.loads(graph.spec(stage, at))
            assert (spec["hook"], spec["output"]) == (hook, output)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("outputs: [layer9]", "saes.topk.outputs[0]: 'layer9' is not a hook of activations.acts; did you mean 'layer2'? (layer1, layer2)"),
        ("outputs: [layer1]", "saes.topk.outputs[0]: 'layer1' comes before 'layer2' in the model"),
        ("outputs: [layer2]", "saes.topk.outputs[0]: 'layer2' is the hook that is read; leave `outputs` out"),
        ("outputs: [layer1, layer2]", "saes.topk.outputs: 2 of them for 1 `hooks`"),
        ("skip: true", "saes.topk.skip: is for transcoders; give `outputs`"),
        ("normalise: {centre: true, scale: whiten}", "saes.topk.normalise.scale: 'whiten' takes the covariance of layer2; add it to"),
        ("training: {keep: best}", "saes.topk.training.keep: "),
    ],
)
def test_what_cannot_be_is_told_in_one_line(text, read, settings, told):
    hooks = "    hooks: [layer1, layer2]\n"
    without = text.replace(hooks, f"{hooks}    splits: [train]\n") + "evaluation: {split: train}\n"
    with pytest.raises(StudyError) as caught:
        read(without.replace(READS, f"{READS}    {settings}\n"))
    line = str(caught.value)
    assert "\n" not in line
    assert told in line


def test_a_covariance_that_is_stored_is_enough_to_whiten(text, read):
    whiten = text.replace(READS, f"{READS}    normalise: {{centre: true, scale: whiten}}\n")
    read(whiten.replace("    hooks: [layer1, layer2]\n", "    hooks: [layer1, layer2]\n    covariance: [layer2]\n"))


@pytest.mark.parametrize(("hooks", "outputs", "wrong"), [("b", "a", True), ("a", "b", False), ("b", "mine", False), ("mine", "a", False)])
def test_where_a_module_of_ones_own_stands_in_the_forward_is_not_known(hooks, outputs, wrong):
    """It is listed last, without a width."""
    model = SimpleNamespace(hooks=lambda: {"a": 3, "b": 3, "mine": None})
    sae = TopK(architecture="topk", activations="acts", hooks=[hooks], outputs=[outputs])
    recorded = Activations(model="given", hooks=["a", "b", "mine"])
    assert bool(list(sae_faults("topk", sae, recorded, [model]))) == wrong
