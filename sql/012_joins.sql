-- Joins, cheaper: nearly all that come want the newest version only, for they have no cursor, or one that is of it. What
-- else lies after a cursor is looked for where there is something. What is asked, and that row level security decides
-- each pair as its caller, is as in 007_joins.sql; so is how it may be called.
--
-- Stable: all of it is read from the snapshot of the statement that calls it, so that no version can come, and no part of
-- the log go, between one look and the next.
create or replace function taskbeam.histories(claims text[], task_ids text[], afters integer[])
returns table (place integer, continues boolean, change taskbeam.changes)
language plpgsql stable as $$
declare
  task text;
  seen integer;
begin
  perform set_config('role', 'authenticated', true);
  for i in 1 .. coalesce(array_length(task_ids, 1), 0) loop
    if i = 1 or claims[i] is distinct from claims[i - 1] then
      perform set_config('request.jwt.claims', claims[i], true);
    end if;
    task := task_ids[i];
    seen := afters[i];
    select g.* into change
      from (select t.version from public.image_generations t where t.task_id = task limit 1) t
      cross join lateral (
        select * from taskbeam.changes g where (g.task_id, g.version) = (task, t.version) limit 1) g;
    if not found then
      continue;
    elsif change.version <= seen::bigint + 1 then
      place := i;
      continues := change.version > seen;
      return next;
      continue;
    end if;
    return query
      select i,
             exists (select from public.task_events e where (e.task_id, e.version) = (c.task_id, seen + 1)),
             c.change
        from (
          select histories.change.version
          union
          select e.version from public.task_events e
           where e.task_id = task and e.version > seen and e.version = e.status_version) v
        cross join lateral (
          select g as change, g.task_id from taskbeam.changes g where (g.task_id, g.version) = (task, v.version) limit 1) c
       order by v.version;
  end loop;
end $$;
-- Again: where rights are given at every `create function`, replacing one gives them anew.
revoke all on function taskbeam.histories(text[], text[], integer[]) from public, anon, authenticated, service_role;
grant execute on function taskbeam.histories(text[], text[], integer[]) to service_role;
