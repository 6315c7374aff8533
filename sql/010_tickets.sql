-- Tickets: what a browser shows in place of an access token where it can send no header. Each is good for one stream.
--
-- Only its SHA-256 is here, with whose it is, what his access token said (row level security decides by that, as it does
-- for the token) and which tasks it is for. Spending one is one DELETE: of many at once one finds it.
--
-- Unlogged: a ticket lives a minute, and a crash of Postgres, which empties the table, brings none back that was spent.

create unlogged table taskbeam.tickets (
  digest bytea primary key check (octet_length(digest) = 32),
  user_id uuid not null,
  claims text not null,
  proven_until double precision,  -- when the access token ends, in Unix seconds; null: the local user needs none
  task_ids text[] check (cardinality(task_ids) between 1 and 100),  -- null: all that are his
  expires_at timestamptz not null
);
create index tickets_owner on taskbeam.tickets (user_id, expires_at);
create index tickets_expired on taskbeam.tickets (expires_at);

-- A new ticket. A user has no more than a number of unspent ones: the oldest go. What another transaction is about to
-- spend is left to it.
create function taskbeam.keep_ticket(
  new_digest bytea, owner_id uuid, said text, until double precision, tasks text[],
  lifetime_seconds double precision, unspent_max integer
) returns timestamptz language plpgsql as $$
declare
  ends constant timestamptz := clock_timestamp() + lifetime_seconds * interval '1 second';
begin
  delete from taskbeam.tickets where digest in (
    select t.digest from taskbeam.tickets t
     where t.digest = any (array(
       select o.digest from taskbeam.tickets o where o.user_id = owner_id
        order by o.expires_at desc offset unspent_max - 1))
       for update skip locked);
  insert into taskbeam.tickets (digest, user_id, claims, proven_until, task_ids, expires_at)
    values (new_digest, owner_id, said, until, tasks, ends);
  return ends;
end $$;

-- The same for tasks that exist, if its user may see each of them (row level security decides); else null, and nothing
-- is kept. As taskbeam.histories: to be called on its own, by service_role, and not SECURITY DEFINER.
create function taskbeam.issue_ticket(
  new_digest bytea, owner_id uuid, said text, until double precision, tasks text[],
  lifetime_seconds double precision, unspent_max integer
) returns timestamptz language plpgsql as $$
begin
  if tasks is not null then
    perform set_config('role', 'authenticated', true), set_config('request.jwt.claims', said, true);
    if (select count(*) from public.image_generations where task_id = any (tasks)) < cardinality(tasks) then
      return null;
    end if;
    perform set_config('role', 'service_role', true);
  end if;
  return taskbeam.keep_ticket(new_digest, owner_id, said, until, tasks, lifetime_seconds, unspent_max);
end $$;

revoke all on taskbeam.tickets from public, anon, authenticated, service_role;
revoke all on function taskbeam.keep_ticket(bytea, uuid, text, double precision, text[], double precision, integer)
  from public, anon, authenticated, service_role;
revoke all on function taskbeam.issue_ticket(bytea, uuid, text, double precision, text[], double precision, integer)
  from public, anon, authenticated, service_role;
grant select, insert, delete, update (expires_at) on taskbeam.tickets to service_role;  -- update: to lock what it takes
grant execute on function taskbeam.keep_ticket(bytea, uuid, text, double precision, text[], double precision, integer)
  to service_role;
grant execute on function taskbeam.issue_ticket(bytea, uuid, text, double precision, text[], double precision, integer)
  to service_role;
