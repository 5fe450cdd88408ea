"""From a row of a store to its text: the right document, token and neighbours, or the right row of a table."""

import numpy as np
import pytest

from pipeline.activations.trace import InText, trace
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.datasets import text, token_files, tokens
from pipeline.study.datasets.text import Text
from tests.conftest import Lookup
from tests.stores import harvested

SPECIAL = 0
DOCUMENTS = [[SPECIAL, 1, 2, 3], [SPECIAL, 4], [SPECIAL], [SPECIAL, 5, 6, 7, 8, 9, 1, 2], [SPECIAL, 3, 3, 4]]
IDS = [token for document in DOCUMENTS for token in document]
NAMES = ["<s>", *"abcdefghi"]


@pytest.fixture
def make_documents(tmp_path):
    """A published token stream of several documents, each of which begins with a special token; ids are shown as `NAMES`."""

    def make(documents, name: str = "documents") -> Artifact:
        with publishing(tmp_path / name, "dataset", {"kind": "given", "name": name}, {}) as draft:
            file = token_files.SplitFile(draft, "train", len(NAMES))
            for document in documents:
                file.add(np.array(document), np.array([len(document)]), np.array([True]))
            file.close()
            token_files.write_vocabulary(draft, [b"", *(one.encode() for one in NAMES[1:])], {SPECIAL: NAMES[SPECIAL]})
            draft.facts |= token_files.facts({"train": file}, len(NAMES), "bytes", [SPECIAL])
        return Artifact.open(tmp_path / name / MANIFEST)

    return make


@pytest.fixture
def make_given(tmp_path, make_documents):
    """A store of those documents in windows of some length, and the dataset."""

    def make(length: int, documents=DOCUMENTS, **settings):
        dataset = make_documents(documents)
        model = Lookup(np.arange(2.0 * len(NAMES)).reshape(-1, 2) + 1)
        return harvested(tmp_path / "store", model, dataset, length, **{"chunk_rows": 4, "shard_rows": 8, **settings}), dataset

    return make


def expected(length: int, left_out: bool, before: int, after: int) -> list[tuple]:
    """Every place that is a row, by walking through the documents: the last token has no next one, and is none."""
    found, at = [], 0
    for number, document in enumerate(DOCUMENTS):
        for offset, token in enumerate(document):
            if at < len(IDS) - 1 and not (left_out and token == SPECIAL):
                around = [NAMES[i] for i in IDS[max(0, at - before) : at]], [NAMES[i] for i in IDS[at + 1 : at + 1 + after]]
                found.append((at // length, at % length, number, offset, token, NAMES[token], *around))
            at += 1
    return [(row, *one) for row, one in enumerate(found)]


@pytest.mark.parametrize("length", [1, 3, 5, 7, 100])
@pytest.mark.parametrize(("rule", "around"), [("special", (2, 3)), ("none", (0, 100))])
def test_every_row_is_traced_to_its_token_across_documents_and_to_the_last_short_window(make_given, length, rule, around):
    store, dataset = make_given(length, leave_out=rule)
    places = trace(store, dataset, range(len(store)), *around)
    assert [tuple(vars(place).values()) for place in places] == expected(length, rule == "special", *around)
    assert len(store) == len(IDS) - 1 - (rule == "special") * len(DOCUMENTS)


def test_rows_come_in_the_order_they_are_asked_for_and_each_chunk_is_read_once(make_given, monkeypatch):
    store, dataset = make_given(5)
    rows = [12, 0, 12, 7, 1]
    whole = trace(store, dataset, range(len(store)))
    read = []
    chunks = type(store["sequence"].chunks)
    own = chunks.read
    monkeypatch.setattr(chunks, "read", lambda self, chunk: read.append((self.name, chunk)) or own(self, chunk))
    assert trace(store, dataset, rows) == [whole[row] for row in rows]
    assert sorted(read) == [(name, chunk) for name in ("position", "sequence") for chunk in (0, 1, 3)]


def test_tokens_that_are_no_rows_stand_around_those_that_are(make_given):
    store, dataset = make_given(7)
    (place,) = trace(store, dataset, [3], before=1, after=2)
    assert (place.text, place.document, place.offset, place.before, place.after) == ("d", 1, 1, ["<s>"], ["<s>", "<s>"])


def test_a_row_of_a_table_is_traced_to_its_input_and_target(make_store, make_table, tmp_path):
    given = np.arange(42.0).reshape(21, 2)
    store = make_store(given)
    table = Artifact.open(tmp_path / "store-rows" / MANIFEST)
    assert [(place.sequence, place.position, place.input, place.target) for place in trace(store, table, [20, 3])] == [
        (20, 0, [40.0, 41.0], 0.0),
        (3, 0, [6.0, 7.0], 0.0),
    ]


def test_another_dataset_is_refused(make_given, make_documents):
    store, dataset = make_given(5)
    other = make_documents(DOCUMENTS, "other")
    with pytest.raises(UserError, match=f"recorded over a dataset with hash {dataset.hash[:16]}, and that of .*other is {other.hash[:16]}"):
        trace(store, other, [0])


@pytest.mark.parametrize("row", [-1, 13, 10**9])
def test_a_row_that_is_not_there_is_named(make_given, row):
    store, dataset = make_given(5)
    with pytest.raises(UserError, match=f"there is no row {row:,}; the store has 13"):
        trace(store, dataset, [0, row])


@pytest.mark.parametrize("tokenizer", ["gpt2-bpe", "stories260K"])
def test_rows_of_a_real_text_are_traced_to_its_documents(tmp_path, data_folder, tokenizer):
    """GPT-2 ends each document by a special token, Llama begins it by one."""
    (tmp_path / "a.txt").write_bytes((data_folder / "tinystories.txt").read_bytes()[:60_000].rpartition(b"<|endoftext|>")[0])
    spec = Text(kind="text", files=[str(tmp_path / "a.txt")], tokenizer={"kind": "hub", "name": str(data_folder / tokenizer)})
    with publishing(tmp_path / "text", "dataset", spec.settings(), {}) as draft:
        text.write(spec, draft)
    dataset = Artifact.open(tmp_path / "text" / MANIFEST)
    stories = {one.strip() for one in (tmp_path / "a.txt").read_text().split("<|endoftext|>")}
    store = harvested(tmp_path / "store", Lookup(np.random.default_rng(0).normal(size=(dataset.facts["vocabulary"], 2))), dataset, 100)
    assert 0 < store.artifact.facts["left_out"] <= dataset.facts["documents"]["train"]
    ids, offsets = tokens.read(dataset, "train"), tokens.offsets(dataset, "train")
    token = store["token"].read(0, len(store))
    for place in trace(store, dataset, [*range(0, len(store), 97), len(store) - 1], 5, 5):
        assert isinstance(place, InText)
        assert place.token == token[place.row] not in dataset.facts["special"]
        document = ids[offsets[place.document] : offsets[place.document + 1]]
        assert document[place.offset] == place.token
        assert tokens.decode(dataset, document).strip() in stories
        start, stop = max(0, place.offset - 5), place.offset + 6
        shown = [*place.before[len(place.before) - place.offset + start :], place.text, *place.after[: len(document) - place.offset - 1]]
        assert shown == tokens.text(document[start:stop], dataset)
