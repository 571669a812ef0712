"""The real PDF manuals that nano learns from, as Debian packages carry them.

The six development manuals are measured on and never trained on; they are listed by the evaluation wing.
"""

from pathlib import Path

from PIL import ImageFont

from llama_index_ziprerank.debian import fetch_file, fetch_package

__all__ = ["FONT_PACKAGES", "TRAINING_MANUALS", "fetch_file", "fetch_fonts"]

TRAINING_MANUALS = {
    "axiom-doc": "bookvol1.pdf",
    "sbcl-doc": "sbcl.pdf",
    "cmucl-docs": "cmu-user.pdf",
    "evolver-doc": "manual270.pdf",
    "petsc3.18-doc": "manual.pdf",
    "auto-07p": "auto.pdf",
    "python-tables-doc": "usersguide.pdf",
    "hmmer-doc": "Userguide.pdf",
    "python-biopython-doc": "Tutorial.pdf",
    "avr-libc": "avr-libc-user-manual.pdf",
    "chezscheme-doc": "csug.pdf",
    "python-escript-doc": "user.pdf",
    "erlang-doc": "otp-system-documentation-13.1.5.pdf",
    "yosys-doc": "manual.pdf",
    "toulbar2-doc": "refman.pdf",
    "clips-doc": "basic_programming_guide.pdf",
    "ngspice-doc": "manual.pdf",
    "freedombox-doc-en": "freedombox-manual.pdf",
    "gnucash-docs": "gnucash-guide-en.pdf",
    "texlive-latex-recommended-doc": "memman.pdf",
    "gambc-doc": "gambit.pdf",
    "octave-doc": "octave.pdf",
    "gmsh-doc": "gmsh.pdf",
    "lilypond-doc-pdf": "learning.pdf",
    "pspp": "pspp.pdf",
    "doxygen-doc": "doxygen_manual.pdf",
    "texlive-lang-english": "lshort.pdf",
    "texlive-pictures-doc": "pgfplots.pdf",
}
"""Debian package -> the PDF inside it."""

FONT_PACKAGES = (
    "fonts-dejavu-core",
    "fonts-liberation2",
    "fonts-open-sans",
    "fonts-lato",
    "fonts-inter",
    "fonts-crosextra-carlito",
    "fonts-crosextra-caladea",
    "fonts-linuxlibertine",
    "fonts-ebgaramond",
    "fonts-stix",
    "fonts-cmu",
    "fonts-croscore",
    "fonts-inconsolata",
    "fonts-firacode",
    "fonts-hack",
    "fonts-jetbrains-mono",
    "fonts-courier-prime",
)
"""Debian packages whose fonts set the synthetic pages."""


def fetch_fonts(folder: Path) -> list[Path]:
    """Return the paths of all upright text fonts of `FONT_PACKAGES`."""
    fonts: list[Path] = []
    for package in FONT_PACKAGES:
        root = fetch_package(package, folder)
        fonts += [path for path in sorted(root.rglob("*")) if path.suffix in {".ttf", ".otf"} and _is_text(path)]
    return fonts


def _is_text(path: Path) -> bool:
    """Whether a font is upright and draws some letters as different shapes; symbol and mathematics fonts do not."""
    if "Italic" in path.name or "Oblique" in path.name:
        return False
    font = ImageFont.truetype(str(path), 20)
    return len({bytes(font.getmask(character)) for character in "aegRM\uffff"}) == 6
