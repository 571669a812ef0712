"""What a query costs: the same weights and pages through the paper's way, its rivals and this package, in one run.

A chain, each file importing only from those before it: configurations, subjects, methods, settings, report, picture,
measuring, comparing, bench.
"""

from llama_index_ziprerank.compat import import_torchvision

import_torchvision()
