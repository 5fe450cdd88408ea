"""Reads study files: YAML mappings, later ones laid over earlier ones, with the line where each setting stands."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pipeline.study.faults import Fault, StudyError, dotted
from pipeline.study.faults import Path as FaultPath


class Sources:
    """The files a study was read from; tells where a setting stands."""

    def __init__(self, files: Iterable[str | Path]) -> None:
        self.trees = [(str(file), _compose(file)) for file in files]
        self.faults = [
            Fault(path, f"{file}:{line}: this key stands twice in the file; only the last one would count")
            for file, tree in self.trees
            for path, line in _twice(tree, ())
        ]

    def read(self) -> dict[str, Any]:
        """The merged settings. Raises StudyError when a file is no mapping or names a key twice."""
        if self.faults:
            raise StudyError(fault.message.replace(": this", f": {dotted(fault.path)}: this", 1) for fault in self.faults)
        merged: dict[str, Any] = {}
        for file, tree in self.trees:
            settings = _construct(file, tree)
            if not isinstance(settings, dict):
                raise StudyError([f"{file}: a study is a mapping of settings, not a {type(settings).__name__}"])
            merged = overlay(merged, settings)
        return merged

    def place(self, path: FaultPath) -> str:
        """`file:line` of the setting at `path`, in the last file that has it or the closest setting above it."""
        best = ("", 0, -1)
        for file, tree in self.trees:
            line, depth = _line(tree, path)
            if depth >= best[2]:
                best = (file, line, depth)
        file, line, depth = best
        return f"{file}:{line}: " if depth > 0 else f"{file}: " if file else ""

    def named(self, error: StudyError) -> StudyError:
        """The same faults with their places in front."""
        return StudyError(f"{self.place(fault.path)}{fault}" if isinstance(fault, Fault) else fault for fault in error.faults)


def overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings of `above` over those of `below`: mappings merge, everything else replaces, as with Snakemake's config files."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = overlay(merged[key], value) if both else value
    return merged


class _Loader(yaml.SafeLoader):
    """Names the line of a value that it cannot make sense of, such as the date 2024-99-99."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError) as error:
            raise yaml.constructor.ConstructorError(None, None, f"{error}; quote the value", node.start_mark) from None


def _construct(file: str, tree: yaml.Node | None) -> Any:
    try:
        return _Loader("").construct_document(tree) if tree is not None else {}
    except yaml.MarkedYAMLError as error:
        raise StudyError([f"{file}{_line_of(error)}: {error.problem}"]) from None
    except RecursionError:
        raise StudyError([f"{file}: a value refers to itself"]) from None


def _line_of(error: yaml.MarkedYAMLError) -> str:
    return f":{error.problem_mark.line + 1}" if error.problem_mark else ""


def _compose(file: str | Path) -> yaml.Node | None:
    try:
        return yaml.compose(Path(file).read_text(encoding="utf-8"), yaml.SafeLoader)
    except OSError as error:
        raise StudyError([f"{file}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise StudyError([f"{file}: not UTF-8 text"]) from None
    except yaml.MarkedYAMLError as error:
        raise StudyError([f"{file}{_line_of(error)}: {error.problem}"]) from None
    except yaml.YAMLError as error:
        raise StudyError([f"{file}: not YAML: {' '.join(str(error).split())}"]) from None


def _twice(node: yaml.Node | None, path: FaultPath) -> Iterable[tuple[FaultPath, int]]:
    if isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            yield from _twice(child, (*path, position))
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, child in node.value:
            name = str(key.value)
            if name in seen:
                yield (*path, name), key.start_mark.line + 1
            seen.add(name)
            yield from _twice(child, (*path, name))


def _line(node: yaml.Node | None, path: FaultPath) -> tuple[int, int]:
    """Line of the deepest setting on `path`, and how many of the path's keys led to it."""
    line, depth = 1, 0
    for key in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
        depth += 1
    return line, depth
