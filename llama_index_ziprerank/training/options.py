"""Recipes as flags and files: every field of the dataclass is an option of the command line, and a key in a file."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import HfArgumentParser

T = TypeVar("T")


def option(default: Any, help: str) -> Any:
    """Declare a field of a recipe: its default and its explanation."""
    return dataclasses.field(default=default, metadata={"help": help.replace("%", "%%")})


def parse_recipe(kind: type[T], arguments: Sequence[str], *, prog: str) -> T:
    """Make a recipe of a command line; flags win over the file named by ``--config``, and that over the defaults.

    ``--help`` and mistakes end the program, as argparse does.

    Raises:
        FileNotFoundError: when the file of ``--config`` does not exist.
        ValueError: when it is no YAML or JSON mapping, has a key that is no field, or a value is out of bounds.
    """
    parser: Any = HfArgumentParser(kind, prog=prog, description=kind.__doc__, allow_abbrev=False)
    parser.add_argument("--config", help="YAML or JSON file with any of these fields; flags win over it.")
    known, _ = parser.parse_known_args(list(arguments))
    if known.config:
        parser.set_defaults(**read_config(kind, known.config))
    [recipe, _] = parser.parse_args_into_dataclasses(list(arguments), look_for_args_file=False)
    return recipe


def read_config(kind: type, path: str) -> dict[str, Any]:
    """Read the fields of a recipe from a YAML or JSON file; errors as `parse_recipe`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"No recipe at {path!r}. Name a YAML or JSON file.")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML too
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe {path!r} is neither YAML nor JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {path!r} holds no fields, but {type(values).__name__}.")
    names = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(values) - set(names)):
        raise ValueError(f"The recipe {path!r} has unknown fields: {', '.join(unknown)}. There are {', '.join(names)}.")
    return values


def write_recipe(recipe: Any, path: Path) -> None:
    """Write a recipe as JSON that ``--config`` takes."""
    path.write_text(json.dumps(dataclasses.asdict(recipe), indent=2) + "\n", encoding="utf-8")
