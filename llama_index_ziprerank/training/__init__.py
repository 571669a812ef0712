"""The training wing: it makes checkpoints that the rooms load by name or path."""
