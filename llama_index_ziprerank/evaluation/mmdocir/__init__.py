"""MMDocIR (Dong et al., arXiv:2501.08828): pages and layouts of long documents, in its own files and arithmetic."""
