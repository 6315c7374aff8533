-- Whether those who follow may still: each question is asked for some hundred of them in one call.
--
-- As in 007_joins.sql each pair of a caller and a task is decided as that caller, by row level security; the same
-- rules hold for hidden() and overviews(): to be called on their own, by service_role, no SECURITY DEFINER.

-- Users and their sessions. On Supabase only the role that migrates may read them; elsewhere perhaps nobody may, or
-- there are no sessions. Looked at in each call: a table may come later, or a right go. What is hidden by row level
-- security must not be taken for absent.
create function taskbeam.can_tell(name text) returns boolean
language sql stable set search_path = '' as $$
  select exists (
    select from pg_catalog.pg_class c
      join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = 'id' and a.atttypid = 'pg_catalog.uuid'::regtype
     where c.oid = to_regclass(name) and c.relkind in ('r', 'p', 'v')
       and has_schema_privilege(c.relnamespace, 'usage') and has_table_privilege(c.oid, 'select')
       and not row_security_active(c.oid))
$$;

-- For each: 'known'; 'unknown', where users are entered at their first write; 'gone', where they are somebody else's
-- to enter; 'signed_out', whose session was ended; null where it cannot be told. A session may be null.
create function taskbeam.standing(users uuid[], sessions uuid[])
returns table (place integer, standing text)
language plpgsql stable security definer set search_path = '' as $$
declare
  ours constant boolean := coalesce(obj_description(to_regclass('auth.users'), 'pg_class') = 'kept by taskbeam', false);
  tells_users constant boolean := taskbeam.can_tell('auth.users');
  absent uuid[] := '{}';
  ended uuid[] := '{}';
begin
  if tells_users then
    absent := array(select asked from unnest(users) asked where not exists (select from auth.users u where u.id = asked));
  end if;
  if taskbeam.can_tell('auth.sessions') then
    ended := array(select asked from unnest(sessions) asked
                    where asked is not null and not exists (select from auth.sessions s where s.id = asked));
  end if;
  return query
    select asked.n::integer,
           case when asked.session_id = any (ended) then 'signed_out'
                when not tells_users then null
                when asked.user_id <> all (absent) then 'known'
                when ours then 'unknown'
                else 'gone' end
      from unnest(users, sessions) with ordinality as asked (user_id, session_id, n);
end $$;

-- The places of those pairs whose task the caller cannot see, as he could not join it.
create function taskbeam.hidden(claims text[], task_ids text[]) returns setof integer
language plpgsql as $$
begin
  perform set_config('role', 'authenticated', true);
  for i in 1 .. coalesce(array_length(task_ids, 1), 0) loop
    perform set_config('request.jwt.claims', claims[i], true);
    perform from (select t.version from public.image_generations t where t.task_id = task_ids[i] limit 1) t
      cross join lateral (
        select from public.task_events e where (e.task_id, e.version) = (task_ids[i], t.version) limit 1) e;
    if not found then
      return next i;
    end if;
  end loop;
end $$;

-- What a stream of many tasks begins with: for each caller his owner's numbers, in a row without a change, and the
-- newest change of each task named (ids joined by commas), or (null) of the open and the newest, `most` at most.
-- In one transaction of repeatable reads it is one picture.
create function taskbeam.overviews(claims text[], users uuid[], named text[], most integer)
returns table (place integer, seq bigint, trimmed bigint, change taskbeam.changes)
language plpgsql as $$
declare
  chosen text[];
begin
  perform set_config('role', 'authenticated', true);
  for i in 1 .. coalesce(array_length(users, 1), 0) loop
    perform set_config('request.jwt.claims', claims[i], true);
    return query select i, o.seq, o.trimmed, null::taskbeam.changes from taskbeam.owners o where o.user_id = users[i];
    chosen := string_to_array(named[i], ',');
    if chosen is null then
      chosen := array(
        select either.task_id from (
          (select t.task_id, t.created_at, true as open from public.image_generations t
            where t.user_id = users[i] and t.status in ('pending', 'processing')
            order by t.created_at desc, t.task_id desc limit most)
          union all
          (select t.task_id, t.created_at, false from public.image_generations t where t.user_id = users[i]
            order by t.created_at desc, t.task_id desc limit most)) either
         group by either.task_id order by bool_or(either.open) desc, max(either.created_at) desc, either.task_id desc
         limit most);
    end if;
    return query
      select i, null::bigint, null::bigint, c.change
        from unnest(chosen) as one (task_id)
        cross join lateral (
          select t.version from public.image_generations t where t.task_id = one.task_id limit 1) t
        cross join lateral (
          select g as change, g.created_at, g.task_id from taskbeam.changes g
           where (g.task_id, g.version) = (one.task_id, t.version) limit 1) c
       order by c.created_at, c.task_id;
  end loop;
end $$;

revoke all on function taskbeam.can_tell(text), taskbeam.standing(uuid[], uuid[]), taskbeam.hidden(text[], text[]),
  taskbeam.overviews(text[], uuid[], text[], integer) from public, anon, authenticated, service_role;
grant execute on function taskbeam.standing(uuid[], uuid[]), taskbeam.hidden(text[], text[]),
  taskbeam.overviews(text[], uuid[], text[], integer) to service_role;
