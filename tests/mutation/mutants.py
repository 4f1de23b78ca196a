"""Small faults in a Python module: cosmic-ray's operators, and kinds that it lacks.

A binary or comparing operator is replaced by one or two others (of all that cosmic-ray offers),
annotations are left alone, and so is what no longer compiles.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import parso
from cosmic_ray.operators import (
    binary_operator_replacement,
    boolean_replacer,
    break_continue,
    comparison_operator_replacement,
    number_replacer,
    unary_operator_replacement,
    zero_iteration_for_loop,
)

_BINARY = {
    "Add": ["Sub"],
    "Sub": ["Add"],
    "Mul": ["Div", "Add"],
    "Div": ["Mul", "FloorDiv"],
    "FloorDiv": ["Mul", "Div"],
    "Mod": ["FloorDiv", "Mul"],
    "Pow": ["Mul"],
    "RShift": ["LShift"],
    "LShift": ["RShift"],
    "BitOr": ["BitAnd"],
    "BitAnd": ["BitOr"],
    "BitXor": ["BitOr"],
}
_COMPARING = {
    "Eq": ["NotEq"],
    "NotEq": ["Eq"],
    "Lt": ["LtE", "GtE"],
    "LtE": ["Lt", "Gt"],
    "Gt": ["GtE", "LtE"],
    "GtE": ["Gt", "Lt"],
    "Is": ["IsNot"],
    "IsNot": ["Is"],
}


@dataclass(frozen=True)
class Mutant:
    """One fault. `before` and `after` are the lines that differ, without the white space around."""

    file: str
    line: int
    kind: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What names it when lines above have moved."""
        return self.file, self.before, self.after


class AugmentedAssignment:
    """`a += b` adds, or replaces: `a -= b` and `a = b` in turn."""

    OTHER: ClassVar = {
        "+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=", "//=": "*=", "@=": "*=", "%=": "//=",
    }  # fmt: skip

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "operator" and node.value in self.OTHER:
            yield from [(node.start_pos, node.end_pos)] * 2

    def mutate(self, node: Any, index: int) -> Any:
        node.value = self.OTHER[node.value] if index == 0 else "="
        return node


class RemoveStatement:
    """A call whose value nobody takes, a `raise`, and what is written into something go away."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.parent is None or node.parent.type != "simple_stmt":
            return
        written = node.type == "expr_stmt" and (
            node.children[0].type in ("atom_expr", "power")
            or (node.children[1].type == "operator" and node.children[1].value != "=")
        )
        called = node.type in ("atom_expr", "power") and node.children[-1].type == "trailer"
        if written or called or node.type == "raise_stmt":
            yield (node.start_pos, node.end_pos)

    def mutate(self, node: Any, index: int) -> Any:
        nothing = parso.parse("pass").children[0]
        nothing.get_first_leaf().prefix = node.get_first_leaf().prefix
        return nothing


class ExceptNothing:
    """`except A` catches nothing. (cosmic-ray's own stumbles over `except module.A`.)"""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "except_clause":
            yield (node.start_pos, node.end_pos)

    def mutate(self, node: Any, index: int) -> Any:
        nothing = parso.parse("()").children[0]
        nothing.get_first_leaf().prefix = " "
        node.children[1] = nothing
        nothing.parent = node
        return node


def _chosen(operators: Iterable[Any], table: dict[str, list[str]], prefix: str) -> list[Any]:
    names = {f"{prefix}_{old}_{new}" for old, many in table.items() for new in many}
    return [operator for operator in operators if operator.__name__ in names]


OPERATORS: list[Any] = [
    *_chosen(binary_operator_replacement.operators(), _BINARY, "ReplaceBinaryOperator"),
    *_chosen(
        comparison_operator_replacement.operators(), _COMPARING, "ReplaceComparisonOperator"
    ),
    *(
        operator
        for operator in unary_operator_replacement.operators()
        if operator.__name__.endswith(("_Delete_USub", "_Delete_Not", "_Delete_Invert"))
    ),
    boolean_replacer.AddNot,
    boolean_replacer.ReplaceTrueWithFalse,
    boolean_replacer.ReplaceFalseWithTrue,
    boolean_replacer.ReplaceAndWithOr,
    boolean_replacer.ReplaceOrWithAnd,
    break_continue.ReplaceBreakWithContinue,
    break_continue.ReplaceContinueWithBreak,
    ExceptNothing,
    number_replacer.NumberReplacer,
    zero_iteration_for_loop.ZeroIterationForLoop,
    AugmentedAssignment,
    RemoveStatement,
]  # fmt: skip


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in getattr(node, "children", ()):
        yield from _nodes(child)


def _is_left_alone(node: Any) -> bool:
    """Whether `node` is a mark among parameters, or lies in an annotation, a decorator or what only
    a type checker reads."""
    if node.type == "operator" and node.parent.type in ("parameters", "lambdef", "param"):
        return True
    child = node
    while (parent := child.parent) is not None:
        if parent.type in ("tfpdef", "annassign") and parent.children.index(child) == (
            2 if parent.type == "tfpdef" else 1
        ):
            return True
        if parent.type == "funcdef" and child is parent.annotation:
            return True
        if parent.type == "decorator":
            return True
        if parent.type == "if_stmt" and "TYPE_CHECKING" in parent.children[1].get_code():
            return True
        child = parent
    return False


def _replace(node: Any, new: Any) -> None:
    if new is not node:
        siblings = node.parent.children
        siblings[next(i for i, sibling in enumerate(siblings) if sibling is node)] = new


def mutants_of(root: Path, file: str) -> Iterator[Mutant]:
    """Every fault of `root/file`, in the order of the operators."""
    text = (root / file).read_text()
    whole = ast.dump(ast.parse(text))
    seen = {whole}
    positions = [
        (operator, place, index, node.start_pos[0])
        for operator in OPERATORS
        for place, node in enumerate(_nodes(parso.parse(text)))
        if not _is_left_alone(node)
        for index, _ in enumerate(operator().mutation_positions(node))
    ]
    for operator, place, index, line in positions:
        node = next(itertools.islice(_nodes(tree := parso.parse(text)), place, None))
        _replace(node, operator().mutate(node, index))
        changed = tree.get_code()
        try:
            meaning = ast.dump(ast.parse(changed))
        except SyntaxError:
            continue
        if meaning in seen:
            continue
        seen.add(meaning)
        pairs = zip(text.splitlines(), changed.splitlines(), strict=False)
        before, after = next(((a, b) for a, b in pairs if a != b), ("", ""))
        yield Mutant(file, line, operator.__name__, before.strip(), after.strip(), changed)
