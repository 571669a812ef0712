"""What a query costs: the same weights and pages through the paper's way, its rivals and this package, in one run.

A chain: configurations, methods, measuring, bench, picture; each file imports only from those before it.
"""

from llama_index_ziprerank.compat import import_torchvision

import_torchvision()
