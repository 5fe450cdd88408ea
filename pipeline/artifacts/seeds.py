"""Seeds for each use of randomness, so that no use shifts another."""

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from a study's seed and what it is for. Swept settings are no part of it: variants stay paired."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
