"""Holds the descriptions to OpenAPI 3.1. Apart from the fast tests: its validator takes a while to load."""

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.openapi.description import DISPATCHER, WEB, Description


@pytest.mark.parametrize("description", [WEB, DISPATCHER], ids=["web", "dispatcher"])
def test_it_is_openapi(description: Description) -> None:
    errors = OpenAPIV31SpecValidator(description.document).iter_errors()
    assert [f"{list(error.absolute_path)}: {error.message}" for error in errors] == []
    assert description.document["openapi"] == "3.1.0"


def test_what_is_not_openapi_would_be_noticed() -> None:
    wrong = msgspec.json.decode(msgspec.json.encode(WEB.document))
    del wrong["paths"]["/api/generate"]["post"]["responses"]["202"]["description"]
    assert list(OpenAPIV31SpecValidator(wrong).iter_errors())
