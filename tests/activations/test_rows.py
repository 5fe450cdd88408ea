"""Which positions become rows: known before any model runs, the same from wherever a writer starts."""

import numpy as np
import pytest
import torch
from harvests import HOOKS, SPEC, gpt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.activations.rows import Rows, tokens_left_out
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.datasets import text, tokens
from pipeline.models.examples import TokenExamples, examples
from pipeline.study.datasets.text import Text
from tests.stores import harvested


class Ids(TokenExamples):
    """Windows over ids that lie in no file."""

    def __init__(self, ids: list[int], length: int) -> None:
        self.ids, self.length = np.array(ids, dtype=np.uint8), length


class Plain:
    """The same, position by position."""

    def __init__(self, ids: list[int], length: int, out: list[int], limit: int | None) -> None:
        every = [(token, i // length, i % length) for i, token in enumerate(ids[:-1])]
        kept = [i for i, row in enumerate(every) if row[0] not in out]
        self.rows = [every[i] for i in kept[:limit]]
        passed = kept[limit - 1] + 1 if limit and limit < len(kept) else len(every)
        self.left_out = passed - len(self.rows)


cases = st.fixed_dictionaries(
    {
        "ids": st.lists(st.integers(0, 4), min_size=2, max_size=120),
        "length": st.integers(1, 9),
        "batch": st.integers(1, 5),
        "out": st.lists(st.integers(0, 4), max_size=3, unique=True),
        "limit": st.none() | st.integers(1, 130),
    }
)


@given(case=cases, data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_the_rows_are_those_of_the_plain_definition_from_any_start(case, data):
    plain = Plain(case["ids"], case["length"], case["out"], case["limit"])
    split = Ids(case["ids"], case["length"])
    if not plain.rows:
        with pytest.raises(UserError, match="leave_out: none"):
            Rows(split, case["batch"], case["out"], case["limit"])
        return
    rows = Rows(split, case["batch"], case["out"], case["limit"])
    assert (rows.total, rows.left_out) == (len(plain.rows), plain.left_out)
    start = data.draw(st.integers(0, rows.total - 1))
    stop = data.draw(st.integers(start + 1, rows.total))
    found = {}
    for at, batch in rows.batches(start, stop):
        columns = rows.index(batch, rows.kept(batch.inputs))
        some = list(zip(*(columns[name].tolist() for name in ("token", "sequence", "position")), strict=True))
        assert some, "no batch without a row goes through the model"
        assert at < stop
        assert at + len(some) > start, "no batch without a row that is asked for"
        assert batch.sequences.start % case["batch"] == 0 or len(batch.sequences) == 1, "the grid of batches does not move"
        found |= dict(enumerate(some, at))
    assert [found[row] for row in range(start, stop)] == plain.rows[start:stop]


def test_counting_in_blocks_changes_nothing(monkeypatch):
    ids = np.random.default_rng(0).integers(0, 5, 1000).tolist()
    whole = Rows(Ids(ids, 7), 2, [0, 3], None)
    for block in (1, 14, 15, 40, 2**20):
        monkeypatch.setattr("pipeline.activations.rows.BLOCK", block)
        some = Rows(Ids(ids, 7), 2, [0, 3], None)
        assert np.array_equal(some.ends, whole.ends)


def test_kept_marks_what_is_left_in(make_tokens):
    dataset = make_tokens([3, 0, 3, 5, 3, 0, 0], 11, special=[0])
    rows = Rows(examples(dataset, "train", 3), 2, tokens_left_out(dataset, "special"), None)
    assert rows.ids == [0]
    assert rows.kept(torch.tensor([[3, 0, 3], [5, 3, 0]])).tolist() == [True, False, True, True, True, False]
    assert rows.kept(torch.tensor([[3, 3]])) is None


@pytest.fixture
def documents(make_tokens):
    """30 documents of six tokens, each ended by token 9, and among them another special one, 8."""
    ids = np.random.default_rng(0).integers(0, 8, (30, 7))
    ids[:, 6] = 9
    ids[::3, 2] = 8
    return make_tokens(ids.flatten(), 11, special=[8, 9])


@pytest.mark.parametrize(("rule", "out"), [("special", [8, 9]), ("beginning", [9]), ("none", [])])
@pytest.mark.parametrize("limit", [None, 50, 64, 10**6])
def test_what_a_rule_leaves_out_is_in_no_row_and_counted(tmp_path, documents, rule, out, limit):
    store = harvested(tmp_path / "store", gpt(), documents, 8, leave_out=rule, rows=limit, **SPEC)
    ids = examples(documents, "train", 8).ids[:-1]
    kept = np.flatnonzero(~np.isin(ids, out))
    some = kept[:limit]
    assert np.array_equal(store["token"].read(0, len(store)), ids[some])
    assert np.array_equal(store["sequence"].read(0, len(store)) * 8 + store["position"].read(0, len(store)), some)
    passed = some[-1] + 1 if len(some) < len(kept) else len(ids)
    assert store.attributes["left_out"] == {"rule": rule, "tokens": out, "positions": passed - len(some)}
    assert store.artifact.facts["left_out"] == passed - len(some)
    assert store.artifact.facts["rows"] == len(store) == len(some)


def test_a_row_does_not_depend_on_what_is_left_out(tmp_path, documents):
    """The model reads every token, whatever becomes a row."""
    whole = harvested(tmp_path / "whole", gpt(), documents, 8, leave_out="none", **SPEC)
    some = harvested(tmp_path / "some", gpt(), documents, 8, leave_out="special", **SPEC)
    kept = ~np.isin(whole["token"].read(0, len(whole)), [8, 9])
    for name in (*HOOKS, "token", "sequence", "position"):
        assert np.array_equal(some[name].read(0, len(some)), whole[name].read(0, len(whole))[kept])


def test_a_split_of_special_tokens_alone_is_refused_in_one_line(tmp_path, make_tokens):
    with pytest.raises(UserError) as caught:
        harvested(tmp_path / "store", gpt(), make_tokens([0] * 30, 11, special=[0]), 8, **SPEC)
    assert str(caught.value) == "no position of the split becomes a row: all its tokens are left out; leave_out: none keeps them"


def test_of_a_table_nothing_is_left_out(make_table):
    table = make_table(np.ones((10, 2)))
    assert tokens_left_out(table, "special") == []
    rows = Rows(examples(table, "train", None), 4, [], 7)
    assert (rows.total, rows.left_out) == (7, 0)


def test_an_empty_table_is_told_so(make_table):
    with pytest.raises(UserError) as caught:
        Rows(examples(make_table(np.ones((0, 2))), "train", None), 4, [], None)
    assert str(caught.value) == "the split is empty: there is nothing to record of it"


@pytest.mark.parametrize("rule", ["special", "beginning"])
def test_the_end_of_each_text_is_left_out_under_a_real_tokenizer(tmp_path, data_folder, rule):
    """GPT-2's tokens have one special one, which ends a document."""
    story = (data_folder / "tinystories.txt").read_text(encoding="utf-8")[:20_000]
    (tmp_path / "texts.txt").write_text(story, encoding="utf-8")
    tokenizer = {"kind": "hub", "name": str(data_folder / "gpt2-bpe")}
    spec = {"kind": "text", "files": [str(tmp_path / "texts.txt")], "tokenizer": tokenizer, "validation": 0}
    with publishing(tmp_path / "dataset", "dataset", {}, {}) as draft:
        text.write(Text.model_validate(spec), draft)
    dataset = Artifact.open(tmp_path / "dataset" / MANIFEST)
    ids = tokens.read(dataset, "train")[:-1]
    ended = int(np.isin(ids, tokens.special(dataset)).sum())
    assert ended > 5
    out = tokens_left_out(dataset, rule)
    assert [tokens.text([one], dataset)[0] for one in out] == ["<|endoftext|>"]
    rows = Rows(examples(dataset, "train", 64), 4, out, None)
    assert (rows.total, rows.left_out) == (len(ids) - ended, ended)
