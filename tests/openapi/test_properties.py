"""Sends what the descriptions allow, and what they do not, made up by schemathesis, and holds every answer to them.

Wrong input is refused, right input is not a wrong one's problem, and nothing is answered with 500 or undescribed.
Proofs are put in their place, so that what lies behind them is reached.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from server.dispatch.token import make_token
from server.openapi import dispatcher, web
from tests.deployment import TOKEN, Deployment
from tests.dispatch.runs import sign
from tests.openapi.conftest import webhook_signature
from tests.openapi.description import DISPATCHER, WEB

EXAMPLES = 12
# A socket is not asked over HTTP; the others take no input.
LEFT_OUT = {
    "openSocket",
    "getLiveness",
    "getReadiness",
    "getKeys",
    "getDescription",
    "getStudio",
    "getDashboard",
    "getDocs",
    "getMetrics",
    "getSession",
    "endSession",
}
OPERATIONS = [
    (part, operation.id)
    for part, description in (("web", WEB), ("dispatcher", DISPATCHER))
    for operation in description.operations
    if operation.id not in LEFT_OUT
]
# Opaque to clients: a cursor, the name of a generator, a message's options. Only the server knows which are its own.
OPAQUE = {"listTasks", "createTask", "publishMessage", "takeWebhook", "takeCallback", "reportProgress", "followTasks"}


@dataclass
class Site:
    deployment: Deployment
    secret: bytes
    task_id: str
    session: requests.Session

    def prove(self, name: str, request: requests.PreparedRequest) -> None:
        """Give a request the proof that its route asks for."""
        content = request.body.encode() if isinstance(request.body, str) else request.body or b""
        assert isinstance(content, bytes)
        if name == "takeCallback":
            target = str(request.path_url)
            request.headers["Upstash-Signature"] = sign(self.deployment.web.url + target, content)
        elif name == "takeWebhook":
            request.headers.update(webhook_signature(content))
        elif name == "reportProgress":
            request.headers["Authorization"] = f"Bearer {make_token(self.secret, self.task_id, 1)}"

    def send(self, name: str, request: requests.Request) -> requests.Response:
        prepared = self.session.prepare_request(request)
        self.prove(name, prepared)
        return self.session.send(prepared, timeout=10, stream=True, allow_redirects=False)


@pytest.fixture(scope="module")
def site(shared: Deployment) -> Iterator[Site]:
    async def read_secret() -> bytes:
        connection = await asyncpg.connect(shared.database.owner_url)
        secret: bytes = await connection.fetchval("select value from taskbeam.secrets where name = 'progress_token'")
        await connection.close()
        return secret

    with requests.Session() as session:
        session.trust_env = False
        accepted = session.post(f"{shared.web.url}/api/generate", json={"prompt": "a test"}, timeout=10)
        yield Site(shared, asyncio.run(read_secret()), accepted.json()["taskId"], session)


def made_up_from(document: dict[str, Any]) -> schemathesis.BaseSchema:
    """Without what is our part here: a proof that was left out on purpose would not stay so."""
    for methods in document["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)
    # Seconds of work for the generator; a prompt of white space, or too long, has its test.
    for schema in (kind for name, kind in document["components"]["schemas"].items() if name == "Generate"):
        schema["properties"]["prompt"] = {"type": "string"}
    return schemathesis.openapi.from_dict(document)


SCHEMAS = {
    "web": made_up_from(web.document()),
    "dispatcher": made_up_from(dispatcher.document()),
}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize(("part", "name"), OPERATIONS, ids=[" ".join(pair) for pair in OPERATIONS])
def test_every_answer_is_described(site: Site, part: str, name: str, mode: GenerationMode) -> None:
    schema = SCHEMAS[part].include(operation_id=name)
    (operation,) = (found.ok() for found in schema.get_all_operations() if isinstance(found, Ok))
    server = site.deployment.web if part == "web" else site.deployment.dispatcher
    excluded = [checks.ignored_auth, checks.use_after_free, checks.ensure_resource_availability]
    if name == "takeCallback":  # 503 for the name of a generator that another process may know
        excluded.append(not_a_server_error)
    if name == "cancelMessages":  # any text in the query is a list of one
        excluded.append(checks.negative_data_rejection)
    if name in OPAQUE:
        excluded.append(checks.positive_data_acceptance)
    headers = {"Authorization": f"Bearer {TOKEN}"} if part == "dispatcher" else {}

    @given(case=operation.as_strategy(mode))
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def hold(case: "schemathesis.Case[Any]") -> None:
        request = requests.Request(**case.as_transport_kwargs(base_url=server.url, headers=headers))
        answer = site.send(name, request)
        assert answer.status_code != 500, answer.text
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            answer.close()  # it would go on
        else:
            case.validate_response(answer, excluded_checks=excluded)

    hold()
