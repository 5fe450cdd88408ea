"""Texts as tokens. Documents are read, encoded and written a few megabytes at a time, so memory does not grow with them."""

import os

from pipeline.artifacts.publishing import Draft
from pipeline.console import say
from pipeline.datasets import pretrained, texts, token_files, tokenizer
from pipeline.study.datasets.text import Text as Spec


def write(spec: Spec, draft: Draft) -> None:
    """Reads the texts and writes the splits."""
    # The rule says how many cores there are; by hand, the spec does. The tokenizers' thread pool reads it at its first use.
    os.environ.setdefault("RAYON_NUM_THREADS", str(spec.threads))
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    source = texts.of(spec)
    sources: dict[str, str] = {}
    encoder: tokenizer.Encoder
    if spec.tokenizer.kind == "bytes":
        encoder = tokenizer.Bytes(ends=not source.stream)
    elif spec.tokenizer.kind == "hub":
        encoder, sources = pretrained.load(spec.tokenizer)
    else:
        assert spec.tokenizer.vocabulary is not None
        train = source.parts("reading for the BPE", "text", only="train")
        encoder = tokenizer.trained((piece.decode() for _, block in train for piece in block.pieces), spec.tokenizer.vocabulary)
        say(f"trained a BPE of {encoder.vocabulary:,} tokens")
    files = {split: token_files.SplitFile(draft, split, encoder.vocabulary) for split in spec.splits()}
    for split, block in source.parts("tokenising", encoder.takes, encoder.apart):
        ids, lengths = encoder.encode(block)
        files[split].add(ids, lengths, block.ends)
    for file in files.values():
        file.close()
    source.check({split: file.documents for split, file in files.items()})
    encoder.write(draft)
    draft.facts |= token_files.facts(files, encoder.vocabulary, encoder.file, encoder.special)
    draft.facts["sources"] = source.hashes() | sources
