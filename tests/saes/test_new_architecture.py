"""The README's example of an architecture is one, as it stands there, and leaves all others as they are."""

import json
import re
import shutil
import subprocess
import sys

import pytest

RUN = """
import json, sys
from pipeline.code import code
from pipeline.study.kinds import kinds

digests = code("pipeline.steps.train_sae", "pipeline.saes.topk") | code("pipeline.steps.evaluate", "pipeline.saes.relu")
found = {"known": sorted(kinds("saes")), "digests": digests}
for weight in sys.argv[1:]:
    import torch
    from pipeline.saes import checkpoint
    from pipeline.saes.base import Step

    torch.manual_seed(0)
    sae, _ = checkpoint.build({"architecture": "roots", "latents": 200, "weight": float(weight)}, 8)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    sae.initialise(x.mean(0))
    sae.losses(x, x, Step(variance=8.0)).total.backward()
    ours, sae.b_dec.grad = sae.b_dec.grad, None
    f = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    error, roots = (f @ sae.W_dec + sae.b_dec - x).square().sum() / 8.0, f.clamp_min(1e-6).sqrt().sum()
    ((error + float(weight) * roots) / 64).backward()
    off = (ours - sae.b_dec.grad).abs().max().item()
    sae.zero_grad()
    adam = torch.optim.Adam(sae.parameters(), lr=0.01)
    for _ in range(150):
        losses = sae.losses(x, x, Step(variance=8.0))
        losses.total.backward()
        adam.step()
        adam.zero_grad()
    found[weight] = {"l0": losses.fired_M.sum().item() / 64, "error": losses.parts["error"].item(), "off": off}
print(json.dumps(found))
"""


@pytest.fixture
def copied(project, tmp_path):
    """The pipeline, in a folder that a test may change."""
    shutil.copytree(project / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*arguments: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    run.folder = tmp_path
    return run


def test_the_readmes_two_files_are_a_new_architecture_and_change_no_other(copied, project):
    before = copied()
    blocks = re.findall(r"`(pipeline/[a-z/]+\.py)` has its.*?```python\n(.*?)```", (project / "README.md").read_text(), re.DOTALL)
    assert [path for path, _ in blocks] == ["pipeline/study/saes/roots.py", "pipeline/saes/roots.py"]
    for path, text in blocks:
        (copied.folder / path).write_text(text)
    after = copied("0.0", "0.1")
    assert after["known"] == sorted([*before["known"], "roots"])
    assert after["digests"] == before["digests"]
    free, sparse = after["0.0"], after["0.1"]
    assert sparse["l0"] < 0.5 * free["l0"]
    assert max(free["off"], sparse["off"]) < 1e-5, "b_dec's gradient is that of the dense formula, through the encoder's input too"
    assert free["error"] < sparse["error"] < 0.5
