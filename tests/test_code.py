"""Digests of code: a change that matters is seen by the steps that run it, any other change by none."""

import ast
from pathlib import Path

import pytest

import pipeline.code
from pipeline.code import code, digest

BASE = '''
"""What it is for."""
import math
from dataclasses import dataclass


@dataclass
class Spec:
    """A class."""

    size: int = 3
    """How large."""

    def area(self, scale: float = 1.0) -> float:
        """The area."""
        # a square
        return math.pi * self.size * scale


def names(x, *rest, key=None):
    return {"a": x[1:], **(key or {})}, [y for y in rest if y], f"{x!r:>8}"
'''


def of(text: str) -> str:
    return digest(ast.parse(text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""What it is for."""', '"""Something else."""'),
        ('"""What it is for."""\n', ""),
        ('    """A class."""\n', ""),
        ('    """How large."""\n', ""),
        ('"""How large."""', '"""The size, in metres."""'),
        ('        """The area."""\n', ""),
        ("        # a square\n", ""),
        ("        # a square\n", "\n\n        # a circle, really\n"),
        ("math.pi * self.size * scale", "(\n            math.pi\n            * self.size * scale\n        )"),
        ('{"a": x[1:]', "{'a': x[1:]"),
        ("int = 3", "int = 0x3"),
        ("x, *rest, key=None", "x, *rest, key=None,"),
    ],
)
def test_words_and_layout_change_nothing(old, new):
    assert BASE.count(old) == 1
    assert of(BASE.replace(old, new)) == of(BASE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("int = 3", "int = 4"),
        ("int = 3", "int = 3.0"),
        ("int = 3", "int"),
        ("size: int", "size: float"),
        ("self.size * scale", "self.size + scale"),
        ("self.size * scale", "scale * self.size"),
        ("float = 1.0", "float = 1.5"),
        ("x[1:]", "x[:1]"),
        ("x[1:]", "x[1::]" + "[0]"),
        ("key=None", "key=0"),
        ("*rest, key", "key"),
        ("if y]", "if not y]"),
        ("[y for y in rest if y]", "{y for y in rest if y}"),
        ('{"a"', '{"b"'),
        ("!r:>8", "!s:>8"),
        ("!r:>8", "!r:>9"),
        ("@dataclass\n", "@dataclass(frozen=True)\n"),
        ("class Spec:", "class Spec(Base):"),
        ("import math\n", "import cmath as math\n"),
        ("def names", "async def names"),
        ("        return math", "        print('a text that is no docstring')\n        return math"),
        ("return {", "yield {"),
    ],
)
def test_a_real_change_is_seen(old, new):
    assert BASE.count(old) == 1
    assert of(BASE.replace(old, new)) != of(BASE)


def test_names_of_the_digests_are_names_of_snakemake_params():
    assert all(name.isidentifier() for name in code("pipeline.steps.write_report", files=("pipeline/report/page.html.jinja",)))


def test_a_number_is_not_the_text_of_it():
    assert len({of(f"x = {value}") for value in ("1", "'1'", "b'1'", "1.0", "1j", "True", "None", "...")}) == 8


def test_a_digest_is_the_same_on_every_python():
    """A new Python would otherwise run everything again."""
    assert of("def f(x, *, y=None):\n    '''Text.'''\n    return [x, 1.5, 'a', None]") == PINNED


PINNED = "1cac003f0ae5"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules of a small project and asks for digests in it."""
    monkeypatch.setattr(pipeline.code, "ROOT", tmp_path)

    def write(**modules: str) -> None:
        for name, text in modules.items():
            path = tmp_path.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in path.relative_to(tmp_path).parents:
                if folder != Path():
                    (tmp_path / folder / "__init__.py").touch()
            path.write_text(text)

    return write


def modules(*names: str, **options) -> set[str]:
    """Modules that `code` follows to, without the packages around them."""
    return {value.split("@")[0] for value in code(*names, **options).values()} - {"p", "p.deep"}


@pytest.mark.parametrize(
    "line",
    [
        "import p.b",
        "import p.b as short",
        "from p import b",
        "from p.b import x",
        "from . import b",
        "from .b import x",
        "from .b import *",
        "def f():\n    from p.b import x",
        "class C:\n    def f(self):\n        from . import b",
        "try:\n    import p.b\nexcept ImportError:\n    pass",
        "if True:\n    from p import b",
        "import os, p.b",
    ],
)
def test_imports_of_every_form_are_followed(write, line):
    write(p__a=line, p__b="x = 1", p__other="x = 2")
    assert modules("p.a") == {"p.a", "p.b"}


def test_imports_are_followed_from_module_to_module_and_round_in_circles(write):
    write(
        p__a="from p import b",
        p__b="def f():\n    from p.deep import c",
        p__deep__c="from .. import a\nfrom ..d import x",
        p__d="x = 1",
        p__e="",
    )
    assert modules("p.a") == {"p.a", "p.b", "p.deep.c", "p.d"}


def test_relative_imports_in_a_package_start_at_the_package(write, tmp_path):
    write(p__deep__c="", p__c="", p__a="import p.deep")
    (tmp_path / "p/deep/__init__.py").write_text("from . import c")
    assert modules("p.a") == {"p.a", "p.deep.c"}


def test_imports_for_type_checkers_alone_are_not_followed(write):
    write(
        p__a="from typing import TYPE_CHECKING\nimport typing\nif TYPE_CHECKING:\n    import p.b\nelse:\n    import p.c\n"
        "if typing.TYPE_CHECKING:\n    from p import d",
        p__b="",
        p__c="",
        p__d="",
    )
    assert modules("p.a") == {"p.a", "p.c"}


def test_imports_for_everything_but_type_checkers_are_followed(write):
    write(p__a="from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import p.b\nelse:\n    import p.c", p__b="", p__c="")
    assert "p.b" in modules("p.a")


def test_packages_around_a_module_count_since_they_run(write, tmp_path):
    write(p__deep__a="")
    before = code("p.deep.a")
    (tmp_path / "p/__init__.py").write_text("import random\nrandom.seed(1)")
    changed = {key for key, value in code("p.deep.a").items() if before[key] != value}
    assert changed == {"code_p"}


def test_a_change_shows_in_the_module_that_changed_and_in_steps_that_reach_it(write):
    write(p__a="from p import b", p__b="x = 1", p__other="y = 1")
    before, other = code("p.a"), code("p.other")
    write(p__b="x = 1  # one")
    assert code("p.a") == before
    write(p__b="x = 21")
    after = code("p.a")
    assert {key for key in before if before[key] != after[key]} == {"code_p_b"}
    assert code("p.other") == other


def test_modules_loaded_by_name_and_data_files_are_named(write, tmp_path):
    write(p__a="", p__plugin="x = 1")
    (tmp_path / "p/page.html").write_text("<p>")
    found = code("p.a", "p.plugin", files=("p/page.html",))
    assert {"code_p_a", "code_p_plugin", "code_p_page_html"} <= found.keys()
    (tmp_path / "p/page.html").write_text("<b>")
    changed = code("p.a", "p.plugin", files=("p/page.html",))
    assert {key for key in found if found[key] != changed[key]} == {"code_p_page_html"}


def test_a_module_that_is_not_there_is_an_error(write):
    write(p__a="import numpy")
    assert modules("p.a") == {"p.a"}
    with pytest.raises(ModuleNotFoundError, match=r"p\.missing"):
        code("p.missing")


def test_what_only_paints_a_terminal_reruns_nothing():
    assert "code_pipeline_console" not in code("pipeline.steps.train_sae")


@pytest.mark.parametrize(
    "step", ["make_dataset", "train_model", "harvest", "seal_store", "train_sae", "evaluate", "describe_features", "probe"]
)
def test_no_step_depends_on_every_architecture_or_on_the_whole_study(step):
    """Or a new architecture, or a new section of the study, would run it again."""
    found = code(f"pipeline.steps.{step}")
    assert not {"code_pipeline_study_study", "code_pipeline_study_kinds", "code_pipeline_study_graph"} & found.keys()
    kinds = {"gpt", "mlp", "relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated", "pointer", "table", "text"}
    assert not {name for name in found if name.rpartition("_")[2] in kinds}
