import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["bulk_index", "serve"])
def test_without_ray_the_extra_is_named(module: str) -> None:
    program = (
        "import sys\nsys.modules['ray'] = None\n"
        f"try:\n    import llama_index_ziprerank.scaling.{module}\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "pip install 'llama-index-ziprerank[scaling]'" in done.stdout
