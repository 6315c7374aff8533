"""Reads a description as a client would, and holds values and answers to it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
from jsonschema import Draft202012Validator, FormatChecker

from server.openapi import dispatcher, web


class Description:
    """A whole document; `problems` says how a value misses a schema of it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))
        self.schemas: dict[str, Any] = self.document["components"]["schemas"]
        self.operations = [
            Operation(self, method, path, body)
            for path, methods in self.document["paths"].items()
            for method, body in methods.items()
        ]
        self.webhooks = {
            name: Operation(self, "post", "", hook["post"]) for name, hook in self.document.get("webhooks", {}).items()
        }

    def resolve(self, part: Any) -> Any:
        while isinstance(part, dict) and "$ref" in part:
            found: Any = self.document
            for key in part["$ref"].removeprefix("#/").split("/"):
                found = found[key]
            part = found
        return part

    def operation(self, name: str) -> "Operation":
        return next(operation for operation in self.operations if operation.id == name)

    def problems(self, schema: Any, value: Any) -> list[str]:
        """How `value` misses `schema`, references into this document included; [] if it does not."""
        whole = {**schema, "components": self.document["components"]}
        errors = Draft202012Validator(whole, format_checker=FormatChecker()).iter_errors(value)
        return [f"{error.json_path}: {error.message[:300]}" for error in errors]


@dataclass
class Operation:
    description: Description
    method: str
    path: str
    body: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.body["operationId"])

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return list(self.body.get("parameters", []))

    @property
    def responses(self) -> dict[str, Any]:
        """By status, references resolved."""
        return {status: self.description.resolve(one) for status, one in self.body["responses"].items()}

    def codes(self, status: int) -> set[str]:
        content = self.responses[str(status)].get("content", {}).get("application/problem+json")
        return set(content["schema"]["properties"]["code"]["enum"]) if content else set()

    def problems_declared(self) -> set[tuple[int, str]]:
        return {(int(status), code) for status in self.responses for code in self.codes(int(status))}

    def examples(self) -> Iterator[tuple[str, Any, Any]]:
        """(where, schema, value) of each part of an example."""
        for parameter in self.parameters:
            for name, example in parameter.get("examples", {}).items():
                yield f"{parameter['name']} of {name}", parameter["schema"], example["value"]
        contents = [("request", self.body.get("requestBody", {}))]
        contents += list(self.responses.items())
        for where, part in contents:
            for media, content in part.get("content", {}).items():
                for name, example in content.get("examples", {}).items():
                    value = self.description.resolve(example)["value"]
                    yield f"{where} {media} of {name}", content["schema"], value

    def hold(self, answer: httpx.Response) -> None:
        """The answer has a status, a content type, a body and a code that are described."""
        said = f"{self.id} answered {answer.status_code} {answer.headers.get('content-type')}: {answer.text[:300]}"
        assert str(answer.status_code) in self.responses, f"undescribed: {said}"
        response = self.responses[str(answer.status_code)]
        if answer.status_code != 431:
            for name in response.get("headers", {}):
                assert name in answer.headers or name == "Retry-After", f"no {name}: {said}"
        if "content" not in response:
            assert not answer.content, said
            return
        media = answer.headers["content-type"].partition(";")[0]
        assert media in response["content"], f"undescribed: {said}"
        schema = response["content"][media].get("schema")
        if schema is None:
            return
        value = json.loads(answer.content) if re.search(r"[/+]json$", media) else answer.text
        problems = self.description.problems(schema, value)
        assert not problems, f"{said}\n{problems}"
        for name, header in response.get("headers", {}).items():
            described = self.description.resolve(header)["schema"]
            if name in answer.headers and "pattern" in described:
                assert re.fullmatch(described["pattern"], answer.headers[name]), f"{name}: {said}"


WEB = Description(web.document())
DISPATCHER = Description(dispatcher.document())
