"""Reads docs/rights.md, and finds out of a database what of it is not so.

Each verb is tried for real as each role, and undone. The catalogue is asked too: a right that is out of reach only for
want of another one is one that nobody meant to give.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.conftest import Connection

RIGHTS = Path(__file__).parents[2] / "docs" / "rights.md"
ROLES = ("everyone", "anon", "authenticated", "service_role")
TABLE_VERBS = ("delete", "truncate", "references", "trigger")

TRIAL = """
set local search_path = '';
create schema trial;
grant usage, create on schema trial to public;
create function trial.noop() returns trigger language plpgsql as 'begin return null; end';
create function trial.attempt(statement text) returns text language plpgsql as $$
begin
  execute statement;
  raise exception using errcode = 'TBEAM';  -- undoes it
exception
  when insufficient_privilege then return 'denied';
  when sqlstate 'TBEAM' then return 'allowed';
  when feature_not_supported then return 'allowed';  -- what is truncated is referenced; a trigger function was called
  when not_null_violation then return 'allowed';     -- a function that writes was called with nulls
  when undefined_table then return 'allowed';        -- we may look into the schema, and there is nothing
  when others then return sqlstate || ': ' || sqlerrm;
end $$;
grant execute on all functions in schema trial to public;
create role stranger;
"""
# Of `public` everything is ours, but for the tables named in $1.
OURS = """
with spaces as (
  select oid from pg_namespace
   where nspname in ('taskbeam', 'dispatcher')
      or (nspname = 'auth' and obj_description('auth.users'::regclass, 'pg_class') = 'kept by taskbeam')
)
select 'schema' as kind, oid::regnamespace::text as name from pg_namespace
 where oid in (table spaces) or nspname = 'public'
union all
select case relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end,
       relnamespace::regnamespace || '.' || relname
  from pg_class
 where relkind in ('r', 'p', 'v', 'm', 'S', 'f')
   and (relnamespace in (table spaces) or (relnamespace = 'public'::regnamespace and relname <> all ($1::text[])))
union all
select 'function', oid::regprocedure::text from pg_proc
 where pronamespace in (table spaces) or pronamespace = 'public'::regnamespace
"""
COLUMNS = """
select quote_ident(attname) as name, format_type(atttypid, atttypmod) as type,
       coalesce(attnum = any (i.indkey), false) as in_key
  from pg_attribute a left join pg_index i on i.indrelid = a.attrelid and i.indisprimary
 where a.attrelid = $1::text::regclass and attnum > 0 and not attisdropped order by attnum
"""


@dataclass(frozen=True)
class Right:
    columns: frozenset[str] | None = None  # None: all of them, or the verb knows none
    own: bool = False

    def covers(self, column: str | None) -> bool:
        return self.columns is None or column in self.columns


Rights: TypeAlias = dict[str, Right]  # by verb


@dataclass(frozen=True)
class Attempt:
    """What one verb does to one object (or column); `statement` is None where it cannot be tried by itself."""

    kind: str
    name: str
    verb: str
    column: str | None
    statement: str | None
    known: str  # what the catalogue is asked, of the role r


def _cell(text: str) -> Rights:
    found = {}
    for match in re.finditer(r"(\w+)( own)?(?: \(([^)]*)\))?(?:, |$)", text.strip()):
        columns = frozenset(match[3].split(", ")) if match[3] else None
        found[match[1]] = Right(columns, bool(match[2]))
    return found


def _written() -> Iterator[tuple[tuple[str, str], dict[str, Rights]]]:
    for kind, name, rest in re.findall(r"^\| (\w+) `([^`]+)` \|(.*)\|$", RIGHTS.read_text(), re.MULTILINE):
        cells = rest.split("|")
        assert len(cells) == len(ROLES), name
        yield (kind, name), dict(zip(ROLES, map(_cell, cells), strict=True))


WRITTEN = dict(_written())  # by kind and name, then by role


async def differences(admin: Connection, login: str, foreign: list[str]) -> list[str]:
    """What is not as docs/rights.md says, a line for each, in this superuser's database.

    `login` is the role the processes log in as; `foreign` are tables in `public` that are not ours.
    """
    transaction = admin.transaction()
    await transaction.start()
    try:
        found = {(row["kind"], row["name"]) for row in await admin.fetch(OURS, foreign)}
        auth_is_ours = ("schema", "auth") in found
        there = {of for of in WRITTEN if auth_is_ours or not of[1].startswith("auth")}
        wrong = [f"{kind} {name} has no row in {RIGHTS.name}" for kind, name in sorted(found - there)]
        wrong += [f"{kind} {name} does not exist" for kind, name in sorted(there - found)]
        await admin.execute(TRIAL)
        attempts = [one for of in sorted(found & there) for one in await _attempts(admin, *of)]
        for role in ("stranger", login, *ROLES[1:]):
            wrong += await _differences_of(admin, role, attempts)
        return wrong
    finally:
        await transaction.rollback()


async def _differences_of(admin: Connection, role: str, attempts: list[Attempt]) -> list[str]:
    questions = ", ".join(attempt.known for attempt in attempts)
    answers = await admin.fetchval(f"select array[{questions}] from (select $1::text::name as r) s", role)  # noqa: S608
    await admin.execute(f"set local role {role}")
    outcomes = await admin.fetch(
        "select case when s is not null then trial.attempt(s) end from unnest($1::text[]) with ordinality u (s, n) "
        "order by n",
        [attempt.statement for attempt in attempts],
    )
    await admin.execute("reset role")
    wrong = []
    column = role if role in ROLES else "everyone"
    for attempt, has, (outcome,) in zip(attempts, answers, outcomes, strict=True):
        rights = WRITTEN[attempt.kind, attempt.name][column]
        may = attempt.verb in rights and rights[attempt.verb].covers(attempt.column)
        reached = attempt.kind == "schema" or "usage" in WRITTEN["schema", attempt.name.partition(".")[0]][column]
        subject = f"{role}: {attempt.verb} {attempt.name} {attempt.column or ''}".rstrip()
        if has is not may:
            wrong.append(f"{subject}: the catalogue says {has}")
        if outcome not in (None, "allowed" if may and reached else "denied"):
            wrong.append(f"{subject}: {outcome}")
    return wrong


async def _attempts(admin: Connection, kind: str, name: str) -> list[Attempt]:
    if kind in ("table", "view"):
        return await _attempts_on_table(admin, kind, name)
    statements: dict[str, str | None]
    if kind == "schema":
        statements = {"usage": f"select '{name}.none'::regclass", "create": f"create table {name}.trial (n int)"}
    elif kind == "function":
        function, _, types = name.removesuffix(")").partition("(")
        values = ", ".join(f"null::{kind}" for kind in types.split(",") if kind)
        statements = {"execute": f"select {function}({values})"}
    else:
        statements = dict.fromkeys(("usage", "select", "update"))
    return [
        Attempt(kind, name, verb, None, statement, f"has_{kind}_privilege(r, '{name}', '{verb}')")
        for verb, statement in statements.items()
    ]


async def _attempts_on_table(admin: Connection, kind: str, name: str) -> list[Attempt]:
    """No row is touched: a statement that could find none needs its rights all the same."""
    columns = await admin.fetch(COLUMNS, name)
    key = [row for row in columns if row["in_key"]]
    written = kind == "table"  # a view that joins is refused any write before rights are looked at
    made = []
    for column in (row["name"] for row in columns):
        statements = {
            "select": f"select {column} from {name} limit 0",  # noqa: S608
            "insert": f"insert into {name} ({column}) select null where false" if written else None,
            "update": f"update {name} set {column} = null where false" if written else None,  # noqa: S608
        }
        for verb, statement in statements.items():
            known = f"has_column_privilege(r, '{name}', '{column}', '{verb}')"
            made.append(Attempt(kind, name, verb, column, statement, known))
    keys = ", ".join(row["name"] for row in key)
    typed = ", ".join(f"{row['name']} {row['type']}" for row in key)
    when = "before" if written else "instead of"
    # An unlogged table may refer to both kinds.
    referring = f"create unlogged table trial.other ({typed}, foreign key ({keys}) references {name})"
    whole = {
        "delete": f"delete from {name} where false" if written else None,  # noqa: S608
        "truncate": f"truncate {name}" if written else None,
        "references": referring if key else None,
        "trigger": f"create trigger trial {when} insert on {name} for each row execute function trial.noop()",
    }
    for verb in TABLE_VERBS:
        made.append(Attempt(kind, name, verb, None, whole[verb], f"has_table_privilege(r, '{name}', '{verb}')"))
    return made
