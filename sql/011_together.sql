-- What comes in at once is committed together: one call, one commit, and for each its own outcome.
--
-- taskbeam.advance holds tasks to the rules of server/tasks/state.py in three steps: it locks them and their owners,
-- judges each word and writes what follows in one statement, and returns the changes as the log has them. A task may
-- come up once in a call: of two updates of a row in one statement Postgres applies one. A source's id (jti) may come up
-- more often, and counts once. What no row is returned for is no task.
--
-- IMPATIENT, it waits for no lock of a task or an owner: what somebody else has is returned as `busy`, with its owner,
-- and nothing of it is written. So a row that is locked for long holds up nobody else. PATIENT, it waits, and takes
-- locks in the order of 003_log.sql.
--
-- The settings are for its plans. They are made once a connection, perhaps while the tables are still empty, and have to
-- hold when they are large: every row is found by its index or its place, one by one. For the same reason rows are
-- looked up in lateral subqueries with a limit, which cannot be turned around. No search_path is set: triggers of the app's
-- own run below it, and may count on theirs.
create function taskbeam.advance(
  kinds text[],                -- report, complete, fail
  task_ids text[], attempts integer[],
  deliveries integer[],        -- of a report: null is the current one; else for the ledger
  progresses smallint[], messages text[], previews text[], step_numbers integer[], step_totals integer[],
  results text[],
  errors text[], error_codes text[], cancellations boolean[],
  jtis text[],                 -- id of a source that counts once, or null
  sources text[],              -- its kind, for the ledger; null: not noted
  statuses integer[],          -- HTTP, that it told of
  run_seconds double precision, noted_max integer, patient boolean
) returns table (place integer, outcome text, owner_id uuid, change taskbeam.changes)
language plpgsql set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
declare
  -- all as long as the arrays that were given
  held tid[];
  held_owners uuid[];
  outcomes text[];
  versions integer[];
  -- those of them that others hold
  owners_busy uuid[];
begin
  if patient then
    select array_agg(l.ctid order by a.n), array_agg(l.user_id order by a.n) into held, held_owners
      from (select u.* from unnest(task_ids) with ordinality as u (task_id, n) order by u.task_id) a
      left join lateral (
        select t.ctid, t.user_id from public.image_generations t where t.task_id = a.task_id limit 1 for no key update) l
        on true;
    perform from (select distinct u.id from unnest(held_owners) as u (id) order by u.id) w
      cross join lateral (select from taskbeam.owners o where o.user_id = w.id limit 1 for no key update) o;
    owners_busy := '{}';
  else
    select array_agg(l.ctid order by a.n), array_agg(l.user_id order by a.n) into held, held_owners
      from unnest(task_ids) with ordinality as a (task_id, n)
      left join lateral (
        select t.ctid, t.user_id from public.image_generations t where t.task_id = a.task_id limit 1
           for no key update skip locked) l
        on true;
    -- Users that have no row there have no log either.
    owners_busy := array(
      select w.id from (select distinct u.id from unnest(held_owners) as u (id)) w
        left join lateral (
          select true as is_held from taskbeam.owners o where o.user_id = w.id limit 1 for no key update skip locked) o on true
       where o.is_held is null and (select true from taskbeam.owners o where o.user_id = w.id limit 1));
  end if;

  with asked as (
    select a.*, row_number() over (partition by a.jti order by a.n) = 1 as is_first
      from unnest(kinds, task_ids, attempts, deliveries, progresses, messages, previews, step_numbers, step_totals, results,
                  errors, error_codes, cancellations, jtis, sources, statuses, held, held_owners) with ordinality
           as a (kind, task_id, attempt, delivery, progress, message, preview, step, steps, result,
                 error, error_code, cancelled, jti, source, http_status, place, user_id, n)
  ), taken as (  -- what is busy is not: it comes again, and must not find itself seen
    select a.*, a.place is not null and (a.user_id = any (owners_busy)) is not true as is_held
      from asked a
  ), seen as (
    insert into taskbeam.callbacks_seen (jti)
    select a.jti from taken a where a.jti is not null and a.is_first and a.is_held
     order by a.jti
    on conflict do nothing returning jti
  ), judged as (
    select a.*, t.status::text as was, t.version, t.delivery as was_delivery, t.attempt as was_attempt,
           a.delivery > t.delivery as is_anew,
           case
             when not a.is_held then null
             when a.jti is not null and not (a.is_first and a.jti in (select s.jti from seen s)) then 'duplicate'
             when a.kind = 'report' then case
               when a.attempt <> t.attempt or t.status in ('completed', 'failed') or a.delivery < t.delivery then 'stale'
               when a.delivery > t.delivery then 'applied'
               when a.progress < coalesce(t.progress, 0) then 'stale'
               when t.status = 'pending'
                 or (coalesce(a.progress, t.progress), coalesce(a.message, t.message), coalesce(a.preview, t.preview),
                     coalesce(a.step, t.step), coalesce(a.steps, t.steps))
                    is distinct from (t.progress, t.message, t.preview, t.step, t.steps) then 'applied'
               else 'duplicate' end
             when a.attempt = t.attempt and t.status in ('pending', 'processing') then 'applied'
             when a.kind = 'complete' and a.attempt = t.attempt and t.result = a.result then 'duplicate'
             when a.kind = 'fail' and a.attempt = t.attempt and (t.error, t.error_code) = (a.error, a.error_code) then 'duplicate'
             else 'stale'
           end as verdict
      from taken a
      left join lateral (select t.* from public.image_generations t where t.ctid = a.place limit 1) t on true
  ), changed as (
    update public.image_generations t set
      status = case j.kind when 'report' then 'processing' when 'complete' then 'completed' when 'fail' then 'failed'
               else t.status end,  -- so that the words are of its type
      result = j.result, error = j.error, error_code = coalesce(j.error_code, t.error_code),
      cancelled = coalesce(j.cancelled, t.cancelled),
      progress = case when j.kind = 'complete' then 100 when j.is_anew and j.kind = 'report' then j.progress
                 else coalesce(j.progress, t.progress) end,
      message = case when j.is_anew and j.kind = 'report' then j.message else coalesce(j.message, t.message) end,
      preview = case when j.kind <> 'report' then null when j.is_anew then j.preview else coalesce(j.preview, t.preview) end,
      step = case when j.is_anew and j.kind = 'report' then j.step else coalesce(j.step, t.step) end,
      steps = case when j.is_anew and j.kind = 'report' then j.steps else coalesce(j.steps, t.steps) end,
      delivery = case when j.kind = 'report' then coalesce(j.delivery, t.delivery) else t.delivery end,
      status_version = case when j.kind <> 'report' or t.status = 'pending' then t.version + 1 else t.status_version end,
      version = t.version + 1,
      updated_at = clock_timestamp(),
      deadline_at = case when j.kind = 'report' and t.began_at is null
                    then clock_timestamp() + run_seconds * interval '1 second' else t.deadline_at end,
      began_at = case when j.kind = 'report' then coalesce(t.began_at, clock_timestamp()) else t.began_at end
     from judged j
    where t.ctid = j.place and j.verdict = 'applied'
    returning j.n
  ), settled as (
    -- A rule of the app's own may have left the row as it was.
    select j.*, case when j.verdict = 'applied' and j.n not in (select c.n from changed c) then 'stale'
                else j.verdict end as outcome
      from judged j
  ), weighed as (
    -- The first good result that comes too late for a run is kept, while the task has none.
    select s.*, s.kind = 'complete' and s.outcome = 'stale' and s.was <> 'completed' and s.attempt <= s.was_attempt
             and (select true from public.task_deliveries d
                   where d.task_id = s.task_id and d.attempt = s.attempt and d.result is not null limit 1) is null as is_kept
      from settled s
  ), noted as (
    insert into public.task_deliveries (task_id, user_id, attempt, delivery, kind, outcome, status, result)
    select w.task_id, w.user_id, w.attempt, coalesce(w.delivery, w.was_delivery), w.source, w.outcome, w.http_status,
           case when w.is_kept then w.result end
      from weighed w
     where w.source is not null and w.outcome is not null
       and (w.is_kept or (w.outcome = 'applied' and w.kind <> 'report')
            or (select count(*) from (
                  select from public.task_deliveries d where d.task_id = w.task_id limit noted_max) d) < noted_max)
  )
  select array_agg(s.outcome order by s.n), array_agg(case when s.outcome = 'applied' then s.version + 1 end order by s.n)
    into outcomes, versions
    from settled s;

  return query
    select a.n::integer, coalesce(a.outcome, 'busy'), o.user_id, c.change
      from unnest(task_ids, outcomes, versions) with ordinality as a (task_id, outcome, version, n)
      left join lateral (
        select g as change from taskbeam.changes g where (g.task_id, g.version) = (a.task_id, a.version) limit 1) c on true
      left join lateral (
        select true as is_there, t.user_id from public.image_generations t
         where t.task_id = a.task_id and a.outcome is null limit 1) o on true
     where a.outcome is not null or o.is_there;
end $$;
revoke all on function taskbeam.advance(
  text[], text[], integer[], integer[], smallint[], text[], text[], integer[], integer[], text[], text[], text[], boolean[],
  text[], text[], integer[], double precision, integer, boolean) from public, anon, authenticated, service_role;
grant execute on function taskbeam.advance(
  text[], text[], integer[], integer[], smallint[], text[], text[], integer[], integer[], text[], text[], text[], boolean[],
  text[], text[], integer[], double precision, integer, boolean) to service_role;

-- New tasks: row, first event, outgoing message and ticket of each. Row level security decides each row as its own
-- caller; one that it refuses takes the call with it, to be made again without. Impatient, it leaves out those whose owner
-- somebody else holds. As taskbeam.histories: called on its own, by service_role, and not SECURITY DEFINER.
create function taskbeam.accept(
  claims text[], user_ids uuid[], task_ids text[], prompts text[], params text[], generators text[],
  digests bytea[], proven_untils double precision[], lifetimes double precision[],  -- of tickets; null: none is asked for
  unspent_max integer, patient boolean
) returns table (place integer, change taskbeam.changes)
language plpgsql as $$
declare
  caller record;
  owners_busy uuid[] := '{}';
begin
  if not patient then
    owners_busy := array(
      select w.id from (select distinct u.id from unnest(user_ids) as u (id)) w
        left join lateral (
          select true as is_held from taskbeam.owners o where o.user_id = w.id limit 1 for no key update skip locked) o on true
       where o.is_held is null and (select true from taskbeam.owners o where o.user_id = w.id limit 1));
  end if;
  perform set_config('role', 'authenticated', true);
  for caller in
    select a.said, a.user_id, array_agg(a.task_id) as tasks, array_agg(a.prompt) as prompts,
           array_agg(a.param) as params, array_agg(a.generator) as generators
      from unnest(claims, user_ids, task_ids, prompts, params, generators)
           as a (said, user_id, task_id, prompt, param, generator)
     where (a.user_id = any (owners_busy)) is not true
     group by a.said, a.user_id order by a.user_id, a.said  -- the order in which the log locks owners
  loop
    perform set_config('request.jwt.claims', caller.said, true);
    insert into public.image_generations (task_id, user_id, prompt, params, generator, began_at)
      select n.task_id, caller.user_id, n.prompt, n.param::jsonb, n.generator, null
        from unnest(caller.tasks, caller.prompts, caller.params, caller.generators) as n (task_id, prompt, param, generator);
  end loop;
  perform set_config('role', 'service_role', true);  -- the rest is ours, not the user's
  insert into taskbeam.dispatches (task_id, attempt)
    select a.task_id, 1 from unnest(task_ids, user_ids) as a (task_id, user_id)
     where (a.user_id = any (owners_busy)) is not true;
  perform taskbeam.keep_ticket(a.digest, a.user_id, a.said, a.until, array[a.task_id], a.lifetime, unspent_max)
     from (select * from unnest(claims, user_ids, task_ids, digests, proven_untils, lifetimes)
                  as u (said, user_id, task_id, digest, until, lifetime) order by u.user_id) a
    where a.digest is not null and (a.user_id = any (owners_busy)) is not true;
  return query
    select a.n::integer, c.change from unnest(task_ids) with ordinality as a (task_id, n)
     cross join lateral (
       select g as change from taskbeam.changes g where (g.task_id, g.version) = (a.task_id, 1) limit 1) c;
end $$;
revoke all on function taskbeam.accept(
  text[], uuid[], text[], text[], text[], text[], bytea[], double precision[], double precision[], integer, boolean)
  from public, anon, authenticated, service_role;
grant execute on function taskbeam.accept(
  text[], uuid[], text[], text[], text[], text[], bytea[], double precision[], double precision[], integer, boolean)
  to service_role;
