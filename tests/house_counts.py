"""What is counted in the house: `python -m tests.house_counts [folder of the package]` prints a table.

Everything is read from the syntax trees, nothing is imported. :mod:`tests.test_house` holds each count to a ceiling.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dptrain"
LONG_FUNCTION = 60  # lines, docstring left out
MANY_PARAMETERS = 7  # self and cls left out
PLACEHOLDERS = {"found", "held", "there", "told", "known", "who", "whole"}
FROM_NAMEDTUPLE = {"_replace", "_asdict", "_fields", "_make"}  # public, whatever they look like
ANY_IS_RIGHT = ("engine.views",)  # mirrors torch functions of any arguments

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file.

    Attributes:
        name: dotted, without the package's own name; a package's `__init__` has the package's name, the top one "".
        tree: its syntax tree.
    """

    name: str
    tree: ast.Module

    @cached_property
    def functions(self) -> list[Function]:
        """Every function and method, nested ones too."""
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]


def read(package: Path = PACKAGE) -> list[Module]:
    """The modules of a package, migrations of the database left out."""
    modules = []
    for path in sorted(package.rglob("*.py")):
        if "migrations" not in path.parts:
            dotted = ".".join(path.relative_to(package).with_suffix("").parts)
            name = "" if dotted == "__init__" else dotted.removesuffix(".__init__")
            modules.append(Module(name, ast.parse(path.read_text(encoding="utf-8"))))
    return modules


def length(function: Function) -> int:
    """Lines from `def` to the end, docstring left out."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def parameters(function: Function) -> int:
    """Parameters that a caller may give, self and cls left out."""
    given = function.args
    names = [
        arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if arg
    ]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def string_keys(module: Module) -> int:
    """Accesses x["key"] and x.get("key", …)."""
    count = 0
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Subscript):
            literal_type = isinstance(node.value, ast.Name) and node.value.id == "Literal"
            count += _is_text(node.slice) and not literal_type
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            count += bool(node.args) and _is_text(node.args[0])
    return count


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def uses_of_any(module: Module) -> int:
    """`Any` in hints, casts and aliases, its import left out."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(module.tree))


def placeholders(module: Module) -> int:
    """Variables that get a name which says nothing."""
    return sum(
        isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in PLACEHOLDERS
        for node in ast.walk(module.tree)
    )


def imports_in_functions(module: Module) -> list[ast.Import | ast.ImportFrom]:
    """Import statements below a function's head, each once."""
    inner = {
        id(node): node
        for function in module.functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return list(inner.values())


def of_this_package(statement: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import is of the package itself."""
    if isinstance(statement, ast.ImportFrom):
        return statement.level > 0 or (statement.module or "").partition(".")[0] == "dptrain"
    return any(alias.name.partition(".")[0] == "dptrain" for alias in statement.names)


def imported(module: Module, names: set[str]) -> set[str]:
    """Modules of this package that one imports anywhere: at its head, in functions, for type hints alone.

    Args:
        names: those that exist: `from dptrain.data import tables` is an import of `data.tables`, while
            `from dptrain.data import Cohort` is one of `data`.
    """
    edges: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "dptrain":
            base = (node.module or "").removeprefix("dptrain").removeprefix(".")
            for alias in node.names:
                below = f"{base}.{alias.name}".removeprefix(".")
                edges.add(below if below in names else base)
        elif isinstance(node, ast.Import):
            edges |= {
                alias.name.removeprefix("dptrain.") for alias in node.names if alias.name.startswith("dptrain.")
            }
    return edges - {module.name}


def circles(modules: list[Module]) -> list[frozenset[str]]:
    """Sets of modules that reach one another through their imports (Tarjan's strongly connected components)."""
    names = {module.name for module in modules}
    edges = {module.name: imported(module, names) & names for module in modules}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[frozenset[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            component = frozenset(stack[at:])
            del stack[at:]
            if len(component) > 1:
                components.append(component)

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return sorted(components, key=sorted)


def private_across(module: Module) -> list[str]:
    """Names with one leading underscore that a module imports from another, or reads off another's object."""
    own = {node.name for node in ast.walk(module.tree) if isinstance(node, Function | ast.ClassDef)}
    own |= {
        node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    own |= {
        node.attr
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    taken = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and of_this_package(node):
            taken += [alias.name for alias in node.names if _private(alias.name)]
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and _private(node.attr):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner not in ("self", "cls") and node.attr not in own | FROM_NAMEDTUPLE:
                taken.append(node.attr)
    return taken


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def counts(modules: list[Module]) -> dict[str, float]:
    """What is counted, in the table's order."""
    functions = [function for module in modules for function in module.functions]
    inner = [statement for module in modules for statement in imports_in_functions(module)]
    return {
        "functions": len(functions),
        "median length (lines)": statistics.median(map(length, functions)),
        f"functions above {LONG_FUNCTION} lines": sum(length(f) > LONG_FUNCTION for f in functions),
        f"functions with more than {MANY_PARAMETERS} parameters": sum(
            parameters(f) > MANY_PARAMETERS for f in functions
        ),
        "accesses by a string key": sum(map(string_keys, modules)),
        "Any": sum(map(uses_of_any, modules)),
        "Any outside engine/views": sum(uses_of_any(m) for m in modules if not m.name.startswith(ANY_IS_RIGHT)),
        "imports inside functions": len(inner),
        "imports of own modules inside functions": sum(map(of_this_package, inner)),
        "circles of imports": len(circles(modules)),
        "modules in circles": sum(map(len, circles(modules))),
        "private names across modules": sum(len(private_across(module)) for module in modules),
        "placeholder names assigned": sum(map(placeholders, modules)),
    }


def worst(modules: list[Module]) -> Iterator[str]:
    """The long functions, the wide ones and the circles, by name."""
    named = [(f"{module.name}.{function.name}", function) for module in modules for function in module.functions]
    yield f"Functions above {LONG_FUNCTION} lines:"
    for name, function in sorted(named, key=lambda pair: -length(pair[1])):
        if length(function) > LONG_FUNCTION:
            yield f"  {length(function):4d}  {name}"
    yield f"Functions with more than {MANY_PARAMETERS} parameters:"
    for name, function in sorted(named, key=lambda pair: -parameters(pair[1])):
        if parameters(function) > MANY_PARAMETERS:
            yield f"  {parameters(function):4d}  {name}"
    yield "Circles of imports:"
    for circle in circles(modules):
        yield "  " + ", ".join(sorted(circle))
    yield "Private names across modules:"
    for module in modules:
        if names := private_across(module):
            yield f"  {module.name}: {', '.join(sorted(set(names)))}"


def main() -> None:
    modules = read(Path(sys.argv[1])) if len(sys.argv) > 1 else read()
    print("| what | count |\n|---|---|")
    for what, count in counts(modules).items():
        print(f"| {what} | {count:g} |")
    print()
    for line in worst(modules):
        print(line)


if __name__ == "__main__":
    main()
