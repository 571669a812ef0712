"""Measuring: qrels, runs, and benchmarks that anybody can repeat. `pip install llama-index-ziprerank[evaluation]`."""
