"""Griffe extension of the site: what the docstrings leave to LlamaIndex's and pydantic's conventions.

Lines that begin with `>>>` become a block of code; a pydantic field is documented by its description, a recipe's field
by the help of its option.
"""

import ast
import re
from typing import Any

import griffe


class OurDocstrings(griffe.Extension):
    """Changes what was read from the sources before it is drawn."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Indent doctest lines, without their prompt, as Markdown wants code."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^>>> ", "    ", obj.docstring.value, flags=re.MULTILINE)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Give a field its description, and show its default alone."""
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
            attr.value = given.get("default")
