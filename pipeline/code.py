"""Digests of the code that a step runs, so that Snakemake sees a change in it.

Snakemake sees a changed shell text, but not a change in a module that a step imports. Each rule therefore carries
`**code("pipeline.steps.<step>")` among its params: one value per local module that the step imports, at top level or inside
functions, transitively. A digest is over the syntax tree: comments, layout, docstrings and field docstrings change nothing.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRESENTATION = frozenset(
    {"pipeline.artifacts.run", "pipeline.console", "pipeline.memory", "pipeline.study.faults", "pipeline.training.tracking"}
)
"""Modules that decide how things are said and shown, and no byte of any artifact."""
_IGNORED = {"ctx", "type_comment", "type_ignores", "kind", "type_params"}


def code(module: str, *also: str, files: tuple[str, ...] = ()) -> dict[str, str]:
    """`{"code_<module>": "<module>@<digest>"}` for a module, the packages around it and all local modules they import.

    `also` names modules that the step loads by name; `files` names data files, relative to the project.
    """
    found: dict[str, str] = {}
    todo = [module, *also]
    for name in todo:
        if _path(name) is None:
            raise ModuleNotFoundError(f"no module {name!r} in the project")
    while todo:
        parts = todo.pop().split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            path = _path(name)
            if path is not None and name not in found and name not in PRESENTATION:
                found[name], imports = _scan(path, name, (path.stat().st_mtime_ns, path.stat().st_size))
                todo.extend(imports)
    found |= {file: hashlib.sha256((ROOT / file).read_bytes()).hexdigest()[:12] for file in files}
    return {f"code_{name.replace('.', '_').replace('/', '_')}": f"{name}@{found[name]}" for name in sorted(found)}


def _path(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def _scan(path: Path, name: str, stamp: tuple[int, int]) -> tuple[str, frozenset[str]]:
    """Digest of a module and the modules it names; `stamp` (time, size) makes a changed file another call."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    return digest(tree), frozenset(_imports(tree, package))


def digest(tree: ast.AST) -> str:
    """Digest of a syntax tree. The same on all Python versions that parse it."""
    return hashlib.sha256(repr(_canonical(tree)).encode()).hexdigest()[:12]


def _canonical(node: object) -> object:
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name not in _IGNORED and value is not None and value != [])
        return (type(node).__name__, *((name, _canonical(value)) for name, value in fields))
    if isinstance(node, list):
        return tuple(_canonical(item) for item in node if not _is_text_alone(item))
    return repr(node)


def _is_text_alone(node: object) -> bool:
    """A statement that is only a text: a docstring, of a module, function, class or field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.AST, package: list[str]) -> set[str]:
    names: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        todo.extend(ast.iter_child_nodes(node))
    return names
