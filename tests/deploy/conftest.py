"""The proxies of docs/deploy/ before two web processes of a test, and what its Dockerfile makes."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import Deploy
from tests.deploy.image import Image
from tests.deploy.proxies import ORIGIN, Caddy, Nginx, Proxy
from tests.deployment import Deployment


@pytest.fixture
async def here(deploy: Deploy) -> Deployment:
    return await deploy(webs=2, dispatchers=0, generator=False, env={"PUBLIC_URL": ORIGIN})


@pytest.fixture(params=[Nginx, Caddy])
async def proxy(request: pytest.FixtureRequest, here: Deployment) -> AsyncIterator[Proxy]:
    """In front of `here`, not yet started."""
    kind: type[Nginx | Caddy] = request.param
    if kind.binary is None:
        pytest.skip(f"NOT TESTED with {kind.__name__}: it is not on the path (apt-get install nginx-light caddy)")
    found = kind(here)
    yield found
    found.stop()


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    with tempfile.TemporaryDirectory(prefix="taskbeam-image-") as folder:
        yield Image(Path(folder))
