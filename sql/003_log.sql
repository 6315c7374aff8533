-- The log of the tasks: every change, by whomever, numbered for its task and for its owner.
--
-- EVERY CHANGE of a task takes the next version of that task in the statement that makes it, and appends one
-- row to task_events in the same transaction (taskbeam.log_changes): no writer can forget the log.
--
-- EVERY EVENT takes the next number of its owner, under a lock on the owner's row that is held to the commit.
-- So for one owner the order of commits is the order of numbers, without gaps: whoever has read up to n has
-- seen everything up to n. A sequence would hand out numbers in one order and let them commit in another.
-- Locks are taken in one order everywhere: tasks by task_id, then owners by user_id.
--
-- OTHER WRITERS (the older app's own routes, the table editor) need know nothing of this. Their inserts begin a log,
-- their updates are versioned and announced (taskbeam_begin, taskbeam_adopt); a row of theirs with a terminal status
-- is a task that ended at its version 1. A row without user is nobody's: it has no log and only service_role sees it.

create table taskbeam.owners (
  user_id uuid primary key references auth.users (id) on delete cascade,
  seq bigint not null default 0
) with (fillfactor = 50);
comment on table taskbeam.owners is 'the number of each owner''s last event; its row lock orders their commits';

-- The part of a task that changes, as it was at each version. The picture's preview is left out: only the
-- newest one is ever shown, and it stands in the row.
create table public.task_events (
  task_id text not null references public.image_generations (task_id) on delete cascade,
  version integer not null,
  user_id uuid not null,
  owner_seq bigint not null,
  at timestamptz not null default clock_timestamp(),
  -- What was not visible in one snapshot and is in the next can be told by this alone, however long its transaction
  -- lasted: neither a time nor a number of ours could.
  xact xid8 not null default pg_current_xact_id(),
  status_version integer not null,  -- equal to version: a change of status or attempt; lower: mere progress
  attempt integer not null,
  delivery integer not null,
  status text not null check (status in ('pending', 'processing', 'completed', 'failed')),
  progress smallint,
  message text,
  step integer,
  steps integer,
  result text,
  error text,
  error_code text,
  cancelled boolean not null,
  primary key (task_id, version)
);
create unique index task_events_owner on public.task_events (user_id, owner_seq);
create index task_events_status on public.task_events (task_id, version) where version = status_version;
create index task_events_xact on public.task_events (xact);
create index task_events_completed on public.task_events (at desc) where status = 'completed' and version = status_version;

-- From the rows as the statement left them, not as they are by now: a trigger of the older app may have changed them
-- again meanwhile. What has its event already did not change (a new deadline is no change of the task).
create function taskbeam.log_changes() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if tg_op = 'INSERT' then
    insert into taskbeam.owners (user_id) select distinct n.user_id from new_rows n where n.user_id is not null
      order by 1 on conflict do nothing;
    -- Ours have not begun when they are inserted, and are published by their author; these are not.
    perform pg_notify('taskbeam', n.task_id || ' ' || n.version) from new_rows n
      where n.began_at is not null and octet_length(n.task_id) <= 128;
  end if;

  perform from taskbeam.owners o
    where o.user_id in (
      select n.user_id from new_rows n
       where not exists (select from public.task_events e where e.task_id = n.task_id and e.version = n.version))
    order by o.user_id for no key update;
  if not found then
    return null;
  end if;

  with changed as (
    select n.* from new_rows n
     where not exists (select from public.task_events e where e.task_id = n.task_id and e.version = n.version)
  ), counted as (
    select user_id, count(*) as n from changed group by user_id
  ), taken as (
    update taskbeam.owners o set seq = o.seq + c.n from counted c where o.user_id = c.user_id
    returning o.user_id, o.seq - c.n as base
  )
  insert into public.task_events (task_id, version, user_id, owner_seq, status_version, attempt, delivery, status,
                                  progress, message, step, steps, result, error, error_code, cancelled)
  select c.task_id, c.version, c.user_id, t.base + row_number() over (partition by c.user_id order by c.task_id),
         c.status_version, c.attempt, c.delivery, c.status::text,
         c.progress, c.message, c.step, c.steps, c.result, c.error, c.error_code, c.cancelled
    from changed c join taken t using (user_id);
  return null;
end $$;

create trigger taskbeam_log_inserts after insert on public.image_generations
  referencing new table as new_rows for each statement execute function taskbeam.log_changes();
create trigger taskbeam_log_updates after update on public.image_generations
  referencing new table as new_rows for each statement execute function taskbeam.log_changes();

-- Rows that were here before: their state is their version 1. The triggers above have locked the table for that.
with numbered as (
  select t.*, row_number() over (partition by t.user_id order by t.created_at, t.task_id) as n
    from public.image_generations t join auth.users u on u.id = t.user_id
), counted as (
  insert into taskbeam.owners (user_id, seq) select user_id, max(n) from numbered group by user_id
)
insert into public.task_events (task_id, version, user_id, owner_seq, at, status_version, attempt, delivery, status,
                                progress, result, error, error_code, cancelled)
select task_id, version, user_id, n, updated_at, status_version, attempt, delivery, status::text,
       progress, result, error, error_code, cancelled
  from numbered;

-- Other writers --------------------------------------------------------------------------------------------------

-- Where the users are ours, whoever has a task is one: a verified `sub`, or what the older app took for one.
create function taskbeam.enter_user() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  insert into auth.users (id) values (new.user_id) on conflict do nothing;
  return new;
end $$;
do $$
begin
  if obj_description('auth.users'::regclass, 'pg_class') = 'kept by taskbeam' then
    create trigger taskbeam_enter_user before insert on public.image_generations for each row
      when (new.user_id is not null) execute function taskbeam.enter_user();
  end if;
end $$;

-- Every log begins at version 1, also of a row that was copied from elsewhere or that arrives already ended. A task
-- that nobody has begun with in a day is given up.
create function taskbeam.begin_task() returns trigger language plpgsql set search_path = '' as $$
begin
  new.version := 1; new.status_version := 1; new.attempt := 1; new.delivery := 1;
  if new.status = 'completed' then
    new.progress := 100;
  elsif new.status = 'failed' then
    new.error := left(coalesce(nullif(new.error, ''), 'failed for an unknown reason'), 2000);
    new.error_code := coalesce(new.error_code, 'unknown');
  elsif new.began_at is null then
    new.deadline_at := now() + interval '1 day';
  end if;
  return new;
end $$;
create trigger taskbeam_begin before insert on public.image_generations for each row
  when (new.began_at is null or new.version <> 1 or new.status_version <> 1 or new.attempt <> 1 or new.delivery <> 1
        or new.status in ('completed', 'failed'))
  execute function taskbeam.begin_task();

-- A change by somebody who does not know versions is versioned like ours, and announced. A result is never dropped:
-- one that comes without `completed` is refused by taskbeam_outcome.
create function taskbeam.adopt_change() returns trigger language plpgsql set search_path = '' as $$
begin
  new.attempt := old.attempt;
  if old.status = 'failed' and new.status = 'pending' then
    new.attempt := old.attempt + 1;
    new.delivery := 1;
    new.cancelled := false;
    new.progress := null; new.message := null; new.preview := null; new.step := null; new.steps := null;
    new.began_at := clock_timestamp();
    new.deadline_at := new.began_at + interval '15 minutes';
  end if;
  if new.status = 'failed' then
    new.error := left(coalesce(nullif(new.error, ''), 'failed for an unknown reason'), 2000);
    new.error_code := coalesce(new.error_code, 'unknown');
  else
    new.error := null; new.error_code := null;
  end if;
  if new.status = 'completed' and old.status <> 'completed' then
    new.progress := 100;
  end if;
  if new.status in ('completed', 'failed') then
    new.preview := null;
  end if;
  new.version := old.version + 1;
  if new.status <> old.status or new.attempt <> old.attempt then
    new.status_version := new.version;
  else
    new.status_version := old.status_version;
  end if;
  new.updated_at := clock_timestamp();
  if octet_length(new.task_id) <= 128 then  -- an older app's may be longer than a notice can be
    perform pg_notify('taskbeam', new.task_id || ' ' || new.version);
  end if;
  return new;
end $$;
create trigger taskbeam_adopt before update on public.image_generations for each row
  when (old.version = new.version and
        (old.status, old.result, old.error, old.error_code, old.prompt, old.params, old.progress, old.message, old.preview,
         old.step, old.steps, old.attempt, old.delivery, old.cancelled, old.batch_id)
        is distinct from
        (new.status, new.result, new.error, new.error_code, new.prompt, new.params, new.progress, new.message, new.preview,
         new.step, new.steps, new.attempt, new.delivery, new.cancelled, new.batch_id))
  execute function taskbeam.adopt_change();

-- The state machine, for every writer. Triggers run by name: this one sees what the one above made of the change.
create function taskbeam.refuse_change() returns trigger language plpgsql set search_path = '' as $$
begin
  raise exception 'task % cannot change so', old.task_id using errcode = 'check_violation', constraint = 'taskbeam_guard',
    detail = format('It is %s at attempt %s, version %s and was to become %s at attempt %s, version %s. A terminal state is '
                    'final but for a retry; task_id and user_id never change.',
                    old.status, old.attempt, old.version, new.status, new.attempt, new.version);
end $$;
create trigger taskbeam_guard before update on public.image_generations for each row
  when (new.task_id <> old.task_id or new.user_id is distinct from old.user_id
        or new.version not in (old.version, old.version + 1)
        or new.attempt <> old.attempt + case when old.status = 'failed' and new.status = 'pending' then 1 else 0 end
        or (old.status = 'processing' and new.status = 'pending')
        or (old.status in ('completed', 'failed') and not (old.status = 'failed' and new.status = 'pending')
            and (new.status <> old.status or new.result is distinct from old.result or new.error is distinct from old.error)))
  execute function taskbeam.refuse_change();

-- Who may what -------------------------------------------------------------------------------------------------

alter table public.task_events enable row level security;
alter table public.task_events force row level security;
alter table taskbeam.owners enable row level security;

revoke all on public.task_events, taskbeam.owners from public, anon, authenticated, service_role;
revoke all on all functions in schema taskbeam from public, anon, authenticated, service_role;

create policy taskbeam_read on public.task_events for select to authenticated using (user_id = (select auth.uid()));
create policy taskbeam_service on public.task_events for all to service_role using (true) with check (true);
create policy taskbeam_only_own on public.task_events as restrictive for all to public
  using (current_user <> 'authenticated' or user_id = (select auth.uid()));
create policy taskbeam_read on taskbeam.owners for select to authenticated using (user_id = (select auth.uid()));
create policy taskbeam_service on taskbeam.owners for all to service_role using (true) with check (true);
do $$
begin
  -- The owner's functions write the log, and forced policies hold for owners too.
  execute format('create policy taskbeam_owner on public.task_events for all to %I using (true) with check (true)', current_user);
end $$;

-- What readers see: a task as it was at one version. Row level security of both tables holds for whoever asks.
create view taskbeam.changes with (security_invoker = true) as
select e.task_id, e.user_id, e.version, e.owner_seq, e.status_version, e.status, e.attempt, e.delivery,
       e.progress, e.message, case when e.version = t.version then t.preview end as preview, e.step, e.steps,
       e.result, e.error, e.error_code, e.cancelled, e.at,
       t.prompt, t.params, t.batch_id, t.created_at, e.version = t.version as newest
  from public.task_events e join public.image_generations t using (task_id);
revoke all on taskbeam.changes from public, anon, authenticated, service_role;

grant select on public.task_events, taskbeam.changes to authenticated;
grant select (user_id, seq) on taskbeam.owners to authenticated;
grant select, delete on public.task_events to service_role;
grant select on taskbeam.changes, taskbeam.owners to service_role;
grant execute on function taskbeam.act_as(text) to service_role;
