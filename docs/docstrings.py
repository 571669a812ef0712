"""Griffe extension of the site: what the docstrings leave to LlamaIndex's and pydantic's conventions.

Lines that begin with `>>>` become a block of code; a pydantic field is documented by its description, a recipe's field
by the help of its option; a default that is a constant's name is shown as its value, and what an object computes for
itself as no default; an annotation goes without its validators; arguments that a docstring explains together get a row
each.
"""

import ast
import re
from importlib import import_module
from typing import Any

import griffe

_TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+)(:.*(?:\n\1 +.*)*)", re.MULTILINE)


class OurDocstrings(griffe.Extension):
    """Changes what was read from the sources before it is drawn."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Indent doctest lines, without their prompt, as Markdown wants code."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^>>> ", "    ", obj.docstring.value, flags=re.MULTILINE)

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Show the values of constants, and explain each argument by itself."""
        for parameter in func.parameters:
            parameter.default = _shown(parameter.default, func)
        if func.docstring is not None:
            func.docstring.value = _TOGETHER.sub(_one_each, func.docstring.value)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Give a field its description, and show its default alone."""
        if isinstance(attr.annotation, griffe.ExprSubscript) and str(attr.annotation.left) == "Annotated":
            attr.annotation = attr.annotation.slice.elements[0]
        if "class-attribute" not in attr.labels and "module-attribute" not in attr.labels:
            attr.value = None
        call = attr.value
        if not isinstance(call, griffe.ExprCall):
            return
        if str(call.function) == "option":
            default, description = call.arguments
            attr.docstring = griffe.Docstring(ast.literal_eval(str(description)), parent=attr)
            attr.value = default
        if str(call.function) != "Field":
            return
        given = {word.name: word.value for word in call.arguments if isinstance(word, griffe.ExprKeyword)}
        if "description" in given:
            attr.docstring = griffe.Docstring(ast.literal_eval(str(given["description"])), parent=attr)
            attr.value = _shown(given.get("default"), attr)


def _shown(default: str | griffe.Expr | None, owner: griffe.Object) -> str | griffe.Expr | None:
    """Return the value of a constant that is named in a module; anything else as it stands."""
    if not isinstance(default, griffe.ExprName) or not default.name.isupper():
        return default
    return repr(getattr(import_module(owner.module.path), default.name))


def _one_each(entry: re.Match[str]) -> str:
    indent, names, text = entry.groups()
    return "\n".join(f"{indent}{name}{text}" for name in names.split(", "))
