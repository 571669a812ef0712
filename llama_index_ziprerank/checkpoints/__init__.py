"""The checkpoints that ship inside the package, and the lookup from a model's name to its folder."""

from pathlib import Path

EMBEDDED = "nano"
"""Name of the embedded pair: a small Qwen3-VL reranker and a small ColQwen3 retriever (see the model cards)."""

_FOLDER = Path(__file__).parent / EMBEDDED


def resolve_reranker(name_or_path: str) -> str:
    """Return the folder of the embedded reranker for ``"nano"``, any other name or path unchanged."""
    return str(_FOLDER / "reranker") if name_or_path == EMBEDDED else name_or_path


def resolve_retriever(name_or_path: str) -> str:
    """Return the folder of the embedded retriever for ``"nano"``, any other name or path unchanged."""
    return str(_FOLDER / "retriever") if name_or_path == EMBEDDED else name_or_path


def check_folder(name_or_path: str, path: str) -> None:
    """Raise FileNotFoundError when `path` can only be a folder, and there is none: no hub is asked for it.

    `path` is what the name resolved to; the message names both. A name on the Hugging Face Hub has at most one slash.
    """
    looks_local = path.startswith((".", "~", "/")) or path.count("/") > 1 or "\\" in path
    if looks_local and not Path(path).is_dir():
        raise FileNotFoundError(
            f"No checkpoint at {name_or_path!r}: the folder {path!r} does not exist. "
            f'Pass "{EMBEDDED}", a folder with a checkpoint, or a name on the Hugging Face Hub.'
        )
