"""Sign-in, as operations, and what it adds to the others."""

import msgspec

from server import errors
from server.auth import LOCAL_USER_ID
from server.identity.session import BODY_BYTES_MAX, Session, SignedOut, SignIn
from server.openapi.operation import Answer, Example, Operation

REFUSED = (errors.InvalidAccessToken, errors.AccessTokenExpired)
LOCAL_SESSION = {"userId": LOCAL_USER_ID, "expiresAt": None, "operator": True}


def signed_in(operation: Operation, *besides: type[errors.Problem]) -> Operation:
    """The operation as it is with sign-in configured: it asks who is calling."""
    asked = (errors.Unauthorized, *REFUSED, *besides)
    problems = (*operation.problems, *(problem for problem in asked if problem not in operation.problems))
    return msgspec.structs.replace(operation, security="accessToken", problems=problems)


SESSIONS = (
    signed_in(
        Operation(
            path="/api/session",
            method="get",
            id="getSession",
            tag="Session",
            summary="Who is calling",
            answers={200: Answer("The user.", Session)},
            problems=(errors.Unavailable,),
            examples=(Example(name="local", about="Without sign-in", status=200, answer=LOCAL_SESSION),),
        )
    ),
    Operation(
        path="/api/session",
        method="post",
        id="beginSession",
        tag="Session",
        summary="Keep an access token in a cookie",
        about="The cookie is HttpOnly, holds the token, and ends with it; EventSource and WebSocket send it. Without "
        "sign-in no cookie is set.",
        body=SignIn,
        body_bytes_max=BODY_BYTES_MAX,
        answers={200: Answer("The user.", Session)},
        problems=(
            errors.InvalidBody,
            errors.TooLarge,
            errors.UnsupportedMediaType,
            *REFUSED,
            errors.Unavailable,
        ),
        examples=(
            Example(
                name="token",
                about="The user's access token",
                status=200,
                body={"token": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiIuLi4ifQ.c2ln"},
                answer=LOCAL_SESSION,
            ),
        ),
    ),
    Operation(
        path="/api/session",
        method="delete",
        id="endSession",
        tag="Session",
        summary="Take the cookie away",
        answers={200: Answer("It is gone.", SignedOut)},
        examples=(Example(name="end", about="Sign out", status=200, answer={"outcome": "signed_out"}),),
    ),
)
