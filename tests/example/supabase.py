"""A stand-in for Supabase: what the example asks of its Auth and its Data API, on a database of this test.

It signs people in by password and their tokens with a key whose public half it publishes. Reads and writes run in
Postgres as the role and with the claims of the token that came, so that row level security decides, as behind
PostgREST; of whose queries it knows `select`, `order`, `limit` and the filters `eq` and `in`.
"""

import base64
import json
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.clusters import Connection, Elsewhere
from tests.receiver import Receiver, Reply, Request

PUBLISHABLE_KEY = "sb_publishable_of_the_tests"
SECRET_KEY = "sb_secret_of_the_tests"
SESSION_SECONDS = 3600
COLUMN = re.compile(r"[a-z_]+", re.ASCII)


@dataclass(frozen=True)
class Person:
    email: str
    password: str = "correct horse battery staple"
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def shown(self) -> dict[str, Any]:
        """As Auth shows a user."""
        return {
            "id": self.id,
            "aud": "authenticated",
            "role": "authenticated",
            "email": self.email,
            "app_metadata": {"provider": "email", "providers": ["email"]},
            "user_metadata": {},
            "identities": [],
            "created_at": "2025-04-12T09:00:00Z",
            "is_anonymous": False,
        }


class Refused(Exception):
    """Status, code and message of an answer."""


class Supabase:
    """Answers at `receiver.origin`; `people` may sign in."""

    def __init__(self, database: Elsewhere, receiver: Receiver, *people: Person) -> None:
        self._database = database
        self.url = receiver.origin
        self.issuer = f"{receiver.origin}/auth/v1"
        # Named by the package after the first label of the host.
        self.cookie = "sb-127-auth-token"
        self._people = people
        self._renewals: dict[str, Person] = {}
        self._key = ec.generate_private_key(ec.SECP256R1())
        receiver.fallback = self._answer

    async def _answer(self, request: Request) -> Reply:
        try:
            if request.path.startswith("/rest/v1/"):
                return await self._rest(request)
            return self._auth(request)
        except Refused as error:
            status, code, message = error.args
            return _json({"code": code, "message": message}, status)
        except asyncpg.PostgresError as error:
            forbidden = isinstance(error, asyncpg.InsufficientPrivilegeError)
            return _json({"code": error.sqlstate, "message": str(error)}, 403 if forbidden else 400)

    # Auth

    def _auth(self, request: Request) -> Reply:
        match request.method, request.path:
            case "GET", "/auth/v1/.well-known/jwks.json":
                public = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
                return _json({"keys": [{**public, "kid": "k1", "alg": "ES256", "use": "sig", "key_ops": ["verify"]}]})
            case "POST", "/auth/v1/token":
                told = request.json()
                for person in self._people:
                    if (person.email, person.password) == (told.get("email"), told.get("password")):
                        return _json(self._session(person, SESSION_SECONDS))
                if told.get("refresh_token") in self._renewals:
                    return _json(self._session(self._renewals.pop(told["refresh_token"]), SESSION_SECONDS))
        raise Refused(400, "invalid_credentials", "Invalid login credentials")

    def expired_cookie(self, person: Person) -> str:
        """What the package keeps of a session whose access token is past its time, and can be renewed."""
        kept = json.dumps(self._session(person, -SESSION_SECONDS)).encode()
        return "base64-" + base64.urlsafe_b64encode(kept).decode().rstrip("=")

    def _session(self, person: Person, seconds: int) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": person.id,
            "aud": "authenticated",
            "role": "authenticated",
            "iat": now + min(0, seconds),
            "exp": now + seconds,
            "email": person.email,
            "aal": "aal1",
            "session_id": str(uuid.uuid4()),
            "is_anonymous": False,
        }
        renewal = uuid.uuid4().hex
        self._renewals[renewal] = person
        return {
            "access_token": jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": "k1"}),
            "token_type": "bearer",
            "expires_in": seconds,
            "expires_at": now + seconds,
            "refresh_token": renewal,
            "user": person.shown(),
        }

    def _role_and_claims(self, request: Request) -> tuple[str, str]:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token.count(".") == 2:
            claims = jwt.decode(token, self._key.public_key(), algorithms=["ES256"], audience="authenticated")
            return claims["role"], json.dumps(claims)
        role = {PUBLISHABLE_KEY: "anon", SECRET_KEY: "service_role"}.get(request.headers.get("apikey", ""))
        if role is None:
            raise Refused(401, "PGRST301", "No such key")
        return role, json.dumps({"role": role})

    # The Data API

    async def _rest(self, request: Request) -> Reply:
        role, claims = self._role_and_claims(request)
        table = _identifier(request.path.removeprefix("/rest/v1/"))
        query = dict(parse_qsl(urlsplit(request.target).query))
        async with self._database.connect(superuser=True) as connection, connection.transaction():
            await connection.execute("set local session authorization authenticator")
            acting = "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)"
            await connection.execute(acting, role, claims)
            match request.method:
                case "GET":
                    rows = await _select(connection, table, query)
                    if "vnd.pgrst.object" not in request.headers.get("accept", ""):
                        return _json(rows)
                    if len(rows) != 1:
                        raise Refused(406, "PGRST116", f"The result contains {len(rows)} rows")
                    return _json(rows[0])
                case "POST":
                    await _insert(connection, table, request.json())
                    return Reply(201)
                case "PATCH":
                    await _update(connection, table, request.json(), query)
                    return Reply(204)
        raise Refused(405, "PGRST117", "Unsupported HTTP method")


async def _select(connection: Connection, table: str, query: dict[str, str]) -> list[dict[str, Any]]:
    columns = ", ".join(map(_identifier, query.pop("select").split(",")))
    order, _, direction = query.pop("order", "").partition(".")
    limit = int(query.pop("limit", 1000))
    where, values = _where(query)
    ordered = f"order by {_identifier(order)} {'desc' if direction.startswith('desc') else 'asc'}" if order else ""
    statement = f"select {columns} from {table} {where} {ordered} limit {limit}"  # noqa: S608  (checked names)
    rows = await connection.fetchval(f"select coalesce(json_agg(t), '[]') from ({statement}) t", *values)  # noqa: S608
    found: list[dict[str, Any]] = json.loads(rows)
    return found


async def _insert(connection: Connection, table: str, row: dict[str, Any]) -> None:
    columns = ", ".join(map(_identifier, row))
    given = f"select {columns} from json_populate_record(null::{table}, $1)"  # noqa: S608  (checked names)
    await connection.execute(f"insert into {table} ({columns}) {given}", json.dumps(row))


async def _update(connection: Connection, table: str, change: dict[str, Any], query: dict[str, str]) -> None:
    columns = ", ".join(map(_identifier, change))
    given = f"select {columns} from json_populate_record(null::{table}, $1)"  # noqa: S608  (checked names)
    where, values = _where(query, 2)
    await connection.execute(f"update {table} set ({columns}) = ({given}) {where}", json.dumps(change), *values)  # noqa: S608


def _where(query: dict[str, str], first: int = 1) -> tuple[str, list[list[str]]]:
    """The condition that the filters make, and its arguments from $first on."""
    conditions, values = [], []
    for number, (column, told) in enumerate(query.items(), first):
        operator, _, value = told.partition(".")
        if operator not in ("eq", "in"):
            raise Refused(400, "PGRST100", f"{operator} is not known here")
        conditions.append(f"{_identifier(column)}::text = any(${number}::text[])")
        values.append([value] if operator == "eq" else value.strip("()").split(","))
    return ("where " + " and ".join(conditions) if conditions else ""), values


def _identifier(name: str) -> str:
    if not COLUMN.fullmatch(name):
        raise Refused(400, "PGRST100", f"{name} is no name")
    return name


def _json(content: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})
