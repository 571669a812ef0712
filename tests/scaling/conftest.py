"""A Ray instance of these tests' own. Without Ray, an optional extra, they are left out: `make test-scaling`."""

import importlib.util
import os
import socket
import time
import warnings
from collections.abc import Iterator

import pytest

HAS_RAY = importlib.util.find_spec("ray") is not None

if HAS_RAY:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Ray's own modules do with pydantic
        import ray.data
        import ray.serve
else:
    collect_ignore = ["test_bulk_index.py", "test_guide.py", "test_serve.py"]


@pytest.fixture(scope="session", autouse=HAS_RAY)
def cluster() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    """Where Ray Serve listens: begun once, since a second one in the process would listen nowhere."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    ray.serve.start(http_options={"host": "127.0.0.1", "port": number})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", number)) == 0:
                break
        time.sleep(0.2)
    yield number
    ray.serve.shutdown()
