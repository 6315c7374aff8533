-- Many joins are one call: each pair of a caller and a task is read as that caller, so that row level security decides
-- each of them, and a thousand clients that come back at once do not cost a thousand transactions.
--
-- To be called on its own, by service_role: the role and the claims last until the transaction ends. No SECURITY
-- DEFINER (there no role could be set), and no SET clause, which would take the role back; all names are qualified.
create function taskbeam.histories(claims text[], task_ids text[], afters integer[])
returns table (place integer, continues boolean, change taskbeam.changes)
language plpgsql as $$
declare
  task text;
  seen integer;
begin
  perform set_config('role', 'authenticated', true);
  for i in 1 .. coalesce(array_length(task_ids, 1), 0) loop
    perform set_config('request.jwt.claims', claims[i], true);
    task := task_ids[i];
    seen := afters[i];
    return query
      select i,
             exists (select from public.task_events e where (e.task_id, e.version) = (c.task_id, seen::bigint + 1)),
             c.change
        from (
          select t.version from public.image_generations t where t.task_id = task
          union
          select e.version from public.task_events e
           where e.task_id = task and e.version > seen and e.version = e.status_version) v
        cross join lateral (
          select g as change, g.task_id from taskbeam.changes g where (g.task_id, g.version) = (task, v.version) limit 1) c
       order by v.version;
  end loop;
end $$;
revoke all on function taskbeam.histories(text[], text[], integer[]) from public, anon, authenticated, service_role;
grant execute on function taskbeam.histories(text[], text[], integer[]) to service_role;
