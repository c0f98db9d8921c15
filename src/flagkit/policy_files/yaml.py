"""A strict reader of YAML 1.2 that names the line of a fault.

JSON is a subset of YAML 1.2, so `on`, `off`, `yes` and `no` are strings. Tags, aliases and merge
keys are refused: each document is complete in itself. The reader knows nothing of policies.
"""

import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import Reader
from ruamel.yaml.scanner import Scanner

from flagkit._core.model.values import escape_for_display, join_path, parse_date
from flagkit.errors import InvalidDocumentError

Node: TypeAlias = Any
"""A node of ruamel.yaml, which is untyped: `id` is mapping, sequence or scalar."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = ("null", "bool", "int", "float", "str")
_KINDS = {
    "null": "null",
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "str": "text",
}
_YAML_1_1: Any = YAML(typ="safe", pure=True)
_YAML_1_1.version = "1.1"
_OCTAL = re.compile("[-+]?0[0-7_]+")
_NO_OLD_FLOAT = re.compile(r"[^.]*|.*[eE]\d+")
"""Floats that programs take for text which are of YAML 1.1 to the letter."""
_DIRECTIVE = re.compile(r"(?:(?:[ \t]*(?:#[^\r\n]*)?|%[^\r\n]*)[\r\n])*?%YAML[ \t]+([^\s#]+)")
"""The version of YAML that is named before the document begins."""
_QUOTED_MAX = 60


class _JsonReader(Reader):
    """Takes the characters that JSON takes: YAML has them in quotes, too."""

    @classmethod
    def _get_non_printable(cls, data: str) -> tuple[int, str] | None:
        found = re.search(r"[^\t\n\r -\U0010ffff]", data)
        return (found.start(), found[0]) if found else None


class _JsonScanner(Scanner):
    """Takes quoted names of any length, as JSON does."""

    def stale_possible_simple_keys(self) -> None:
        scanner: Any = self
        for key in scanner.possible_simple_keys.values():
            if key.mark.buffer[key.mark.pointer] == '"':
                key.index = scanner.reader.index
        super().stale_possible_simple_keys()


def compose(path: str, written: bytes) -> Node:
    """Return the root node of a file, None if it is empty; errors name it as `path`.

    Raises:
        InvalidDocumentError: it is not YAML, or of another version.
    """
    try:
        text = written.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _build_syntax_error(path, str(error)) from error
    _check_version(path, text)
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Reader, yaml.Scanner = _JsonReader, _JsonScanner
    try:
        return yaml.compose(text)
    except MarkedYAMLError as error:
        fault: Any = error
        where = f"{path}:{fault.problem_mark.line + 1}" if fault.problem_mark else path
        problem = ", ".join(filter(None, (fault.context, fault.problem)))
        if r"'\t'" in problem:
            problem = "a tab stands where YAML takes spaces alone: indent with spaces"
        # The message quotes neither names nor lines: text that is no YAML may be a secret.
        raise _build_syntax_error(where, re.sub(r"'[^'<]{2,}'", "a name", problem)) from None
    except YAMLError as error:
        raise _build_syntax_error(path, str(error).partition("\n")[0]) from error
    except RecursionError as error:
        raise _build_syntax_error(path, "it is nested too deep") from error
    except (ValueError, ArithmeticError) as error:
        raise _build_syntax_error(path, "it escapes a character that there is not") from error


def _build_syntax_error(where: str, problem: str) -> InvalidDocumentError:
    problem = f"is not YAML: {problem}"
    return InvalidDocumentError("", problem, "Mend it and try again", subject=where)


def _check_version(path: str, text: str) -> None:
    directive = _DIRECTIVE.match(text)
    if directive and directive[1] != "1.2":
        version = shorten(directive[1])
        old = version in ("1.0", "1.1")
        why = "where on, off, yes and no are booleans" if old else "which is not known here"
        raise InvalidDocumentError(
            "",
            f"is YAML {version}, {why}",
            f"Remove the line %YAML {version}",
            subject=f"{path}:{text.count(chr(10), 0, directive.start(1)) + 1}",
        )


class YamlReader:
    """Converts nodes to values, and rejects ambiguous ones.

    `ambiguities` has the values that YAML 1.1 readers understand differently.
    """

    def __init__(self, path: str) -> None:
        self.ambiguities: list[InvalidDocumentError] = []
        self._path = path
        self._seen: set[int] = set()
        self._constructor: Any = YAML(typ="safe", pure=True).constructor

    def read_value(self, node: Node, path: str = "") -> Any:
        """Return the value of a node, in plain types."""
        if id(node) in self._seen:
            raise self._build_error(
                node, path, "is an alias", "Write it out: each flag says it all"
            )
        self._seen.add(id(node))
        tag = node.tag.removeprefix(_TAG)
        match node.id, tag:
            case "mapping", "map":
                return self._read_mapping(node, path)
            case "sequence", "seq":
                return [self.read_value(item, f"{path}[{i}]") for i, item in enumerate(node.value)]
            case "scalar", "timestamp":
                return self._read_date(node, path)
            case "scalar", _ if tag in _PLAIN:
                return self._read_scalar(node, path, tag)
            case _:
                problem = f"has the tag {shorten(tag)}, which means nothing here"
                raise self._build_error(node, path, problem, "Remove it, or quote the value")

    def _read_mapping(self, node: Node, path: str) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key_node, child in node.value:
            if key_node.id != "scalar":
                problem = "has a list or mapping as a key"
                raise self._build_error(key_node, path, problem, "Use a string as the key")
            key = self.read_value(key_node, join_path(path, key_node.value))
            if key in found:
                problem = "is there twice, and only one could count"
                raise self._build_error(
                    key_node, join_path(path, key), problem, "Remove one of them"
                )
            found[key] = self.read_value(child, join_path(path, key))
        return found

    def _read_date(self, node: Node, path: str) -> datetime:
        try:
            return parse_date(node.value)
        except ValueError:
            problem = f"{_quote(node.value)} is no date"
            raise self._build_error(
                node, path, problem, "Write it like 2026-12-01T08:00:00Z"
            ) from None

    def _read_scalar(self, node: Node, path: str, tag: str) -> Any:
        tagged = _is_tagged(node)
        if node.style is None and not tagged:
            self._check_yaml_1_1(node, path, tag)
        try:
            value = self._constructor.construct_object(node)
        except (ValueError, LookupError):
            problem = f"{_quote(node.value)} is no {tag}"
            remedy = "Remove the tag" if tagged else "Quote it, or write another number"
            raise self._build_error(node, path, problem, remedy) from None
        if isinstance(value, float) and math.isinf(value) and "inf" not in node.value.lower():
            problem = f"{_quote(node.value)} is beyond the numbers that there are"
            raise self._build_error(node, path, problem, "Write a smaller one, or quote it")
        if isinstance(value, str):
            # JSON escapes a character beyond U+FFFF as two, which YAML leaves as two.
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return value

    def _check_yaml_1_1(self, node: Node, path: str, tag: str) -> None:
        other = _YAML_1_1.resolver.resolve(ScalarNode, node.value, (True, False))
        other_tag = str(other).removeprefix(_TAG)
        if other_tag == tag == "float" and _NO_OLD_FLOAT.fullmatch(node.value):
            other_tag = "str"
        if other_tag == tag and not (tag == "int" and _OCTAL.fullmatch(node.value)):
            return
        text = shorten(node.value)
        meant = f"{_KINDS[tag]}, but {_KINDS[other_tag]}" if other_tag != tag else "another number"
        problem = f"{text} is {meant} to readers of YAML 1.1"
        remedy = "Write it as a decimal number"
        if tag == "str":
            remedy = f'Quote it: "{text}"'
        elif tag == "float":
            remedy = "Write a point, and the exponent with its sign, as in 1.0e+3"
        self.ambiguities.append(self._build_error(node, path, problem, remedy))

    def _build_error(
        self, node: Node, path: str, problem: str, remedy: str
    ) -> InvalidDocumentError:
        return InvalidDocumentError(path, problem, remedy, subject=f"{self._path}:{get_line(node)}")


def _is_tagged(node: Node) -> bool:
    start, end = node.start_mark, node.end_mark
    return bool(start.buffer[start.pointer : end.pointer].lstrip().startswith("!"))


def shorten(text: str) -> str:
    """Return a text for a message, truncated if it is long."""
    return escape_for_display(text if len(text) <= _QUOTED_MAX else f"{text[:_QUOTED_MAX]}...")


def _quote(text: str) -> str:
    return repr(text if len(text) <= _QUOTED_MAX else f"{text[:_QUOTED_MAX]}...")


def get_line(node: Node, path: str = "") -> int:
    """Return the line, from 1, of the value at a path below a node, or of the nearest parent."""
    mark = node
    while path:
        reached = [
            (label, at, child)
            for label, at, child in iter_children(node)
            if re.match(rf"{re.escape(label)}(?=$|[.\[])", path)
        ]
        if not reached:
            break
        # The names themselves may have dots: the longest is meant.
        label, mark, node = max(reached, key=lambda found: len(found[0]))
        path = path[len(label) :].removeprefix(".")
    return int(mark.start_mark.line) + 1


def iter_children(node: Node) -> Iterator[tuple[str, Node, Node]]:
    """Yield each child of a node: its label in a path, the node where it begins, and itself."""
    if node.id == "mapping":
        for key, child in node.value:
            yield escape_for_display(str(key.value)), key, child
    elif node.id == "sequence":
        for i, child in enumerate(node.value):
            yield f"[{i}]", child, child
