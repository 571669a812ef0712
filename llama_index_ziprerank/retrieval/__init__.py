"""The first stage: pages and questions become many vectors each (ColPali), a store ranks pages by MaxSim."""

from llama_index_ziprerank import compat

compat.import_torchvision()
