"""Recipes as flags and files: every field of the dataclass is an option of the command line, and a key in a file."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

T = TypeVar("T")

RECIPE = "recipe.json"
"""Lies in every checkpoint."""


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
        values = yaml.safe_load(Path(path).read_bytes())  # JSON is YAML too; YAML tells the encoding
    except (yaml.YAMLError, ValueError) as error:  # the latter for the 31st of June
        raise ValueError(f"The recipe {path!r} is neither YAML nor JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {path!r} holds no fields, but {type(values).__name__}.")
    hints = {field.name: get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)}
    if unknown := sorted(str(name) for name in set(values) - set(hints)):
        raise ValueError(f"The recipe {path!r} has unknown fields: {', '.join(unknown)}. There are {', '.join(hints)}.")
    try:
        return {name: typed(name, value, hints[name]) for name, value in values.items()}
    except ValueError as error:
        raise ValueError(f"The recipe {path!r}: {error}") from error


def typed(name: str, value: Any, hint: Any) -> Any:
    """Return a value in its field's type: YAML takes 1e-4 for a text, `trainer` may be written out, a path is its text.

    Raises:
        ValueError: when it is of another type.
    """
    kinds = get_args(hint) or (hint,)
    if get_origin(hint) is Literal:  # which of the words, the recipe checks itself
        kinds = (str,)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, dict) and str in kinds:
        return json.dumps(value, default=str)  # YAML has dates
    if isinstance(value, Path):
        value = str(value)
    for kind in kinds:
        if type(value) is kind:
            return value
        if kind in (int, float) and isinstance(value, str | int | float) and not isinstance(value, bool):
            with contextlib.suppress(ValueError):
                if kind is float or float(value).is_integer():
                    return kind(float(value))
    wanted = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ValueError(f"{name} is of the type {wanted}, got {value!r}.")


MAY_CHANGE = frozenset(
    "resume output_dir max_steps epochs eval_steps save_steps keep_checkpoints logging_steps workers feature_cache_gb "
    "gradient_checkpointing attn_implementation".split()
)
"""What a training that goes on may have otherwise: how long, where, and how often it is measured and saved."""


def check_recipe(recipe: Any, checkpoint: Path) -> None:
    """Raise ValueError when a checkpoint was trained by another recipe than the one that is to go on from it."""
    path = checkpoint / RECIPE
    if not path.is_file():
        return
    found, wanted = json.loads(path.read_text(encoding="utf-8")), dataclasses.asdict(recipe)
    differing = sorted(name for name in wanted.keys() & found.keys() - MAY_CHANGE if found[name] != wanted[name])
    if differing:
        told = "; ".join(f"{name} {found[name]!r}, now {wanted[name]!r}" for name in differing)
        raise ValueError(
            f"{str(checkpoint)!r} was trained with another recipe: {told}. Go on with the same, or name another "
            "--output_dir."
        )


def write_recipe(recipe: Any, path: Path) -> None:
    """Write a recipe as JSON that ``--config`` takes."""
    path.write_text(json.dumps(dataclasses.asdict(recipe), indent=2) + "\n", encoding="utf-8")
