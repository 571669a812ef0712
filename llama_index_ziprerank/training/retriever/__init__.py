"""The first stage: a ColPali-family retriever, trained with colpali-engine's own collator, losses and trainer."""
