"""Stage 0, reading: the vision tower learns which characters and word pieces stand under its patches.

Two losses share one tower. Each patch names the character at eight points in it (dense, so it leaves the plateau of
random initialisation within minutes); each merged token is pulled to the token embeddings of the word pieces it owns
(cosine, against the whole vocabulary). The embeddings are those of the language models: after this stage a visual token
and the words it shows point the same way, which is what query-image early interaction and MaxSim feed on.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from llama_index_ziprerank.training.nano.crops import Crops, PagePool
from llama_index_ziprerank.training.nano.labels import GLYPH_CLASSES, LabelledPage
from llama_index_ziprerank.training.nano.layout import MARKS
from llama_index_ziprerank.training.nano.model import PATCH, WIDTH
from llama_index_ziprerank.training.nano.spelling import SpelledEmbedding
from llama_index_ziprerank.training.nano.tower import initialise_tower, normalise, patchify, tower_forward

POINTS = 8
"""Points a patch is asked at: 4 along the line, 2 lines."""


@dataclass(frozen=True)
class ReadingConfig:
    """How stage 0 is trained."""

    minutes: float = 60.0
    """Wall-clock time of the whole stage; a resumed run continues with what is left."""
    learning_rate: float = 2e-3
    """Peak of the schedule: linear warm-up over `warmup_steps`, then cosine over the time to 2 %."""
    warmup_steps: int = 150
    glyph_weight: float = 1.0
    """Weight of the character loss; the word-piece loss has weight 1."""
    words_from: float = 0.45
    """Share of the characters that must be read (moving average) before the word-piece loss joins."""
    negatives: int | None = 1024
    """Random word pieces that the batch's own pieces are told from; None: the whole vocabulary."""
    crops: tuple[tuple[float, int, int, int], ...] = (
        (0.35, 64, 128, 512),
        (0.7, 128, 256, 1024),
        (0.92, 256, 384, 1536),
        (1.0, 512, 768, 3072),
    )
    """Until this share of the time, crops of this height and width, this many patches a step: small, then pages."""
    degraded: float = 0.25
    """Share of the crops that look scanned."""
    batch: int = 1
    """How many times `crops` has of patches are read in a step: a GPU has room for more than a CPU."""
    compiled: bool = False
    """Compile the tower for each size of crops: twice the speed on a CPU, and needs a C++ compiler there."""
    save_every: int = 200
    """Steps between checkpoints."""


class Reader(nn.Module):
    """The vision tower, the token embeddings, and the two heads that only this stage uses."""

    def __init__(self, config: Qwen3VLConfig, pieces: list[str]) -> None:
        super().__init__()
        self.tower = Qwen3VLVisionModel(config.vision_config)
        initialise_tower(self.tower)
        self.tower.pos_embed.weight.requires_grad_(False)
        self.embeddings = SpelledEmbedding(pieces, WIDTH)
        self.glyphs = nn.Linear(config.vision_config.hidden_size, POINTS * GLYPH_CLASSES)
        self.log_scale = nn.Parameter(torch.tensor(math.log(12.0)))

    def forward(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W) gray -> character logits (B, P, 8, classes) and merged tokens (B, M, D)."""
        patches, merged = tower_forward(self.tower, gray)
        return self.glyphs(patches).unflatten(-1, (POINTS, GLYPH_CLASSES)), merged

    def piece_logits(self, merged: Tensor, pieces: Tensor) -> Tensor:
        """Scaled cosine of merged tokens and pieces: (M, D), (V,) ids -> (M, V). The marks' dimensions stay free."""
        content = slice(None, -len(MARKS))
        tokens = F.normalize(merged[:, content], dim=-1)
        words = F.normalize(self.embeddings(pieces)[:, content], dim=-1)
        return self.log_scale.exp() * tokens @ words.T


def glyph_targets(glyphs: Tensor) -> Tensor:
    """(B, H / 4, W / 4) classes -> (B, P, 8) in the order of `patchify`."""
    cells = patchify(glyphs, 4, 2)  # (B, P, 16), 4 rows of 4
    return torch.cat([cells[..., 4:8], cells[..., 12:16]], -1).long()


def piece_loss(logits: Tensor, tokens: Tensor, pieces: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each owned piece against all pieces that its token does not own.

    M tokens, V pieces, O pieces owned: logits (M, V), `tokens` (O,) rows and `pieces` (O,) columns of what is owned,
    weights (V,) -> loss and top-1 accuracy. A token that covers parts of two lines may be near several words at once:
    they do not compete with each other.
    """
    mine = torch.zeros_like(logits, dtype=torch.bool)
    mine[tokens, pieces] = True
    others = logits.masked_fill(mine, -torch.inf)
    right = logits[tokens, pieces]
    losses = F.softplus(others.logsumexp(1)[tokens] - right)
    weight = weights[pieces]
    accuracy = ((right > others.amax(1)[tokens]) * weight).sum() / weight.sum()
    return (losses * weight).sum() / weight.sum(), accuracy


def piece_weights(pages: list[LabelledPage], vocabulary_size: int) -> Tensor:
    """Rare pieces say which page it is, frequent ones do not: weight sqrt(2e-4 / frequency) within 0.1 .. 1."""
    counts = np.bincount(np.concatenate([page.pieces for page in pages]), minlength=vocabulary_size)
    frequency = torch.from_numpy(counts / counts.sum()).clamp(min=1e-9)
    return (2e-4 / frequency).sqrt().clamp(0.1, 1.0).float()


@dataclass
class _Progress:
    """Where a run stands; saved with it."""

    step: int = 0
    seconds: float = 0.0
    read: float = 0.0
    """Moving average of the share of characters that are read."""


def train_reading(
    reader: Reader, pages: list[LabelledPage], config: ReadingConfig, folder: Path, device: str = "cpu"
) -> None:
    """Train `reader` in place for `config.minutes`; resumes from `folder` and logs to `folder`/reading.log."""
    folder.mkdir(parents=True, exist_ok=True)
    reader.to(device).train()
    optimizer = torch.optim.AdamW(
        reader.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    progress = _resume(reader, optimizer, folder)
    weights = piece_weights(pages, len(reader.embeddings)).to(device)
    pool = PagePool(pages, device)
    read = torch.compile(reader, dynamic=False) if config.compiled else reader
    for until, height, width, patches in config.crops:
        if progress.seconds >= until * 60 * config.minutes:
            continue
        count = max(1, config.batch * patches * PATCH**2 // (height * width))
        clock = time.monotonic()
        while True:
            share = progress.seconds / (60 * config.minutes)
            rate = config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (progress.step + 1) / config.warmup_steps)
            crops = pool.draw(count, height, width, config.degraded)
            said = _step(reader, read, optimizer, crops, weights, config, progress)
            progress.step += 1
            progress.seconds += time.monotonic() - clock
            clock = time.monotonic()
            if progress.step % 50 == 0:
                with (folder / "reading.log").open("a") as log:
                    log.write(f"{progress.step} {progress.seconds / 60:.2f} min crops {height}x{width} {said}\n")
            finished = progress.seconds >= until * 60 * config.minutes
            if finished or progress.step % config.save_every == 0:
                _save(reader, optimizer, folder, progress)
            if finished:
                break


def _step(
    reader: Reader,
    read: Callable[[Tensor], tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    crops: Crops,
    weights: Tensor,
    config: ReadingConfig,
    progress: _Progress,
) -> str:
    """One update, matrix products in bfloat16; returns what the log says about it."""
    with torch.autocast(crops.gray.device.type, torch.bfloat16):
        glyph_logits, merged = (part.float() for part in read(normalise(crops.gray)))
    targets = glyph_targets(crops.glyphs)
    loss = glyph_loss = _glyph_loss(glyph_logits, targets)
    right = (glyph_logits.argmax(-1) == targets)[targets > 0].float().mean().item()
    progress.read += 0.02 * (right - progress.read)
    said = f"characters {glyph_loss.item():.3f} {progress.read:.3f}"
    if progress.read >= config.words_from:
        words_loss, accuracy = _words_loss(reader, merged.flatten(0, 1), crops, weights, config.negatives)
        loss = words_loss + config.glyph_weight * glyph_loss
        said += f" words {words_loss.item():.3f} top1 {accuracy.item():.3f}"
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
    optimizer.step()
    return said


def _words_loss(
    reader: Reader, merged: Tensor, crops: Crops, weights: Tensor, negatives: int | None
) -> tuple[Tensor, Tensor]:
    """Word-piece loss of the tokens that own a piece, against the batch's and random pieces, or against all."""
    owners, rows = crops.tokens.unique(return_inverse=True)
    if negatives is None:
        every = torch.arange(len(weights), device=merged.device)
        return piece_loss(reader.piece_logits(merged[owners], every), rows, crops.pieces, weights)
    random_pieces = torch.randint(len(weights), (negatives,), device=merged.device)
    compared = torch.cat([crops.pieces, random_pieces]).unique()
    columns = torch.searchsorted(compared, crops.pieces)
    return piece_loss(reader.piece_logits(merged[owners], compared), rows, columns, weights[compared])


def _glyph_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in which blank points, the easy majority, weigh a fifth."""
    weight = torch.ones(GLYPH_CLASSES, device=logits.device)
    weight[0] = 0.2
    return F.cross_entropy(logits.flatten(0, 2), targets.flatten(), weight)


def _save(reader: Reader, optimizer: torch.optim.Optimizer, folder: Path, progress: _Progress) -> None:
    save_model(reader, str(folder / "reader.partial"))
    (folder / "reader.partial").rename(folder / "reader.safetensors")
    torch.save({"optimizer": optimizer.state_dict(), "progress": asdict(progress)}, folder / "reading.partial")
    (folder / "reading.partial").rename(folder / "reading.pt")


def _resume(reader: Reader, optimizer: torch.optim.Optimizer, folder: Path) -> _Progress:
    """Continue from what `_save` left, or start."""
    if not (folder / "reading.pt").exists():
        return _Progress()
    load_model(reader, str(folder / "reader.safetensors"))
    state = torch.load(folder / "reading.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    return _Progress(**state["progress"])
