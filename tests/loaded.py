"""What the server of `fresh` loads once: the steps that train, what torch loads at its first optimizer, what test modules import, and
digests of code, which are kept for as long as a file is as it was."""

import pkgutil

import pytest  # noqa: F401
import torch._dynamo  # noqa: F401

from pipeline import models, saes
from pipeline.code import code
from pipeline.steps import train_model, train_sae

found = [f"{package.__name__}.{module.name}" for package in (models, saes) for module in pkgutil.iter_modules(package.__path__)]
code(train_model.__name__, train_sae.__name__, *found)
