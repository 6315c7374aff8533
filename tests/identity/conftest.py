"""A deployment with sign-in, by the secret of tokens.py."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from tests.conftest import Deploy
from tests.deployment import Deployment
from tests.identity.tokens import ISSUER, SECRET

SIGN_IN = {"AUTH_ISSUER": ISSUER, "AUTH_SECRET": SECRET}
OPERATOR_KEY = "key-of-the-operators-0123456789abcdef"
APP = "https://app.example.com"
PUBLIC = "https://tasks.example.com"
COOKIE = "sb-project-auth-token"

DeploySignedIn: TypeAlias = Callable[..., Awaitable[Deployment]]


@pytest.fixture
def deploy_signed_in(deploy: Deploy) -> DeploySignedIn:
    async def start(env: dict[str, str] | None = None, **options: Any) -> Deployment:
        return await deploy(env={**SIGN_IN, **(env or {})}, **options)

    return start


@pytest.fixture
async def here(deploy_signed_in: DeploySignedIn) -> Deployment:
    """Without a generator: its tasks stay as they are."""
    env = {
        "ALLOWED_ORIGINS": f"{APP}, http://localhost:3000",
        "ALLOWED_HOSTS": "web.internal:8000",
        "AUTH_OPERATOR_KEY": OPERATOR_KEY,
        "AUTH_COOKIE": COOKIE,
    }
    return await deploy_signed_in(env, dispatchers=0, generator=False)
