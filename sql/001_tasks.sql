-- The tasks, their log, and who may see them.
--
-- Runs on plain Postgres 15 or newer, on Supabase, and over the image_generations table of an app that polled
-- until now: its enum, rows, defaults and policies stay, what is missing is added, what contradicts is repaired.
--
-- THE STATE MACHINE of a task (held by taskbeam.adopt_change below for writers that know nothing of it)
--
--     pending ──▶ processing ──▶ completed        completed is final
--        │             └───────▶ failed           failed ──▶ pending is an explicit retry: a new attempt
--        └──▶ completed | failed                  (a generator that reports nothing is never `processing`)
--
-- EVERY CHANGE of a task takes the next version of that task in the statement that makes it, and appends one
-- row to task_events in the same transaction (taskbeam.log_changes): no writer can forget the log.
--
-- EVERY EVENT takes the next number of its owner, under a lock on the owner's row that is held to the commit.
-- So for one owner the order of commits is the order of numbers, without gaps: whoever has read up to n has
-- seen everything up to n. A sequence would hand out numbers in one order and let them commit in another.
-- Locks are taken in one order everywhere: tasks by task_id, then owners by user_id.

-- Roles, as Supabase names them ------------------------------------------------------------------------------

do $$
declare role_name text;
begin
  foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
    if not exists (select from pg_roles where rolname = role_name) then
      execute format('create role %I nologin noinherit', role_name);
    end if;
    -- Since Postgres 16 whoever creates a role may administer it, but not yet take it on.
    if not pg_has_role(current_user, role_name,
                       case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end) then
      execute format('grant %I to %I', role_name, current_user);
    end if;
  end loop;
end $$;

-- Users: Supabase has auth.users; elsewhere a minimal one, filled by taskbeam.ensure_user ---------------------

do $$
begin
  if to_regclass('auth.users') is null then
    create schema if not exists auth;
    create table auth.users (id uuid primary key, created_at timestamptz not null default now());
    comment on table auth.users is 'kept by taskbeam';
    grant usage on schema auth to anon, authenticated, service_role;
  end if;
  if to_regprocedure('auth.uid()') is null then
    create function auth.uid() returns uuid language sql stable set search_path = '' as
      $f$ select nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', '')::uuid $f$;
    grant execute on function auth.uid() to anon, authenticated, service_role;
  end if;
end $$;

grant usage on schema taskbeam to service_role;

create function taskbeam.ensure_user(id uuid) returns void
language plpgsql security definer set search_path = '' as $$
begin
  -- Where somebody else keeps the users, an unknown one stays unknown.
  if obj_description('auth.users'::regclass, 'pg_class') = 'kept by taskbeam' then
    insert into auth.users (id) values (ensure_user.id) on conflict do nothing;
  end if;
end $$;

-- The rest of the transaction runs as the caller. Not SECURITY DEFINER: there no role could be set.
create function taskbeam.act_as(claims text) returns void language sql as $$
  select set_config('role', 'authenticated', true), set_config('request.jwt.claims', claims, true)
$$;

-- The tasks --------------------------------------------------------------------------------------------------

do $$
begin
  if to_regclass('public.image_generations') is null then
    create type public.image_generation_status as enum (
      'pending',     -- accepted; nobody has begun (or a retry was asked for)
      'processing',  -- a generator has begun: it reported progress, or our dispatcher handed it the job
      'completed',   -- final; result holds the picture's URL
      'failed'       -- ended without a result; error says why; an explicit retry opens the next attempt
    );
    create table public.image_generations (
      id uuid primary key default gen_random_uuid(),
      user_id uuid not null references auth.users (id) on delete cascade,
      task_id text not null unique,
      status public.image_generation_status not null default 'pending',
      result text,
      error text,
      prompt text not null,
      created_at timestamptz not null default now(),
      updated_at timestamptz not null default now()
    );
  end if;
end $$;

-- An older table: only what would make the rest fail or lie is changed.
do $$
declare
  column_name text;
  column_type text;
  label text;
  key record;
begin
  foreach column_name in array array['user_id', 'task_id', 'status', 'result', 'error', 'prompt', 'created_at', 'updated_at'] loop
    select format_type(atttypid, null) into column_type from pg_attribute
     where attrelid = 'public.image_generations'::regclass and attname = column_name and not attisdropped;
    if column_type is null then
      raise exception 'image_generations has no column %: this is not the table taskbeam knows', column_name;
    end if;
    if column_name in ('task_id', 'result', 'error', 'prompt') and column_type not in ('text', 'character varying') then
      raise exception 'image_generations.% is %, but must be text', column_name, column_type;
    end if;
    if column_name in ('created_at', 'updated_at') then
      if column_type = 'timestamp without time zone' then
        execute format('alter table public.image_generations alter %I type timestamptz using %1$I at time zone ''utc''', column_name);
      end if;
      -- timezone('utc', now()) is wrong by the session's offset
      execute format('alter table public.image_generations alter %I set default now()', column_name);
      execute format('update public.image_generations set %I = now() where %1$I is null', column_name);
      execute format('alter table public.image_generations alter %I set not null', column_name);
    end if;
  end loop;

  foreach label in array array['pending', 'processing', 'completed', 'failed'] loop
    if exists (select from pg_attribute a join pg_type t on t.oid = a.atttypid
                where a.attrelid = 'public.image_generations'::regclass and a.attname = 'status' and t.typtype = 'e'
                  and not exists (select from pg_enum e where e.enumtypid = t.oid and e.enumlabel = label)) then
      raise exception 'the status enum of image_generations has no value %', label;
    end if;
  end loop;

  -- The key to users must cascade: a deleted user leaves no task behind.
  for key in select conname from pg_constraint
              where conrelid = 'public.image_generations'::regclass and contype = 'f' and confdeltype <> 'c'
                and confrelid = 'auth.users'::regclass loop
    execute format('alter table public.image_generations drop constraint %I', key.conname);
  end loop;
  if not exists (select from pg_constraint where conrelid = 'public.image_generations'::regclass
                  and contype = 'f' and confrelid = 'auth.users'::regclass) then
    alter table public.image_generations add constraint image_generations_user_id_fkey
      foreign key (user_id) references auth.users (id) on delete cascade not valid;
  end if;

  if not exists (select from pg_index i where i.indrelid = 'public.image_generations'::regclass and i.indisunique
                  and i.indnatts = 1 and i.indpred is null and i.indkey[0] = (
                    select attnum from pg_attribute where attrelid = i.indrelid and attname = 'task_id')) then
    create unique index image_generations_task_id_key on public.image_generations (task_id);
  end if;
end $$;

alter table public.image_generations
  alter status set default 'pending',
  add column params jsonb not null default '{}',
  add column progress smallint,           -- percent of this run; null: nothing reported yet
  add column message text,                -- what the generator says it is doing
  add column preview text,                -- URL (or small data URL) of an unfinished picture
  add column step integer,
  add column steps integer,
  add column error_code text,             -- stable word for programs: timeout, generator_error, …
  add column cancelled boolean not null default false,
  add column attempt integer not null default 1,         -- runs asked for: 1, and one more with each retry
  add column delivery integer not null default 1,        -- deliveries within this run, as far as is known
  add column version integer not null default 1,         -- of this task: 1, 2, 3 … without gaps
  add column status_version integer not null default 1,  -- version of the last change of status or attempt
  add column batch_id text,
  -- When the run is given up. Null: not yet counting (the dispatcher has not begun). The default is for rows
  -- that others insert: nothing of theirs stays open for ever either.
  add column deadline_at timestamptz default now() + interval '15 minutes';

comment on column public.image_generations.version is 'of this task: 1, 2, 3 without gaps; taken in the statement that makes the change';
comment on column public.image_generations.status_version is 'version of the last change of status or attempt';

-- Old rows that contradict themselves say so from now on, instead of refusing every later update.
update public.image_generations set status = 'failed', error = 'completed without a result'
 where status = 'completed' and result is null;
update public.image_generations set error = null where status = 'completed' and error is not null;
update public.image_generations set error = 'failed for an unknown reason' where status = 'failed' and coalesce(error, '') = '';
update public.image_generations set result = null where status = 'failed' and result is not null;
update public.image_generations set result = null, error = null
 where status in ('pending', 'processing') and (result is not null or error is not null);
update public.image_generations set error = left(error, 2000) where char_length(error) > 2000;
update public.image_generations set prompt = '(no prompt)' where coalesce(prompt, '') = '';
update public.image_generations set prompt = left(prompt, 32000) where char_length(prompt) > 32000;
update public.image_generations set status_version = 1, error_code = case status when 'failed' then 'unknown' end;

-- Named apart from the app's own constraints; NOT VALID first, so that an odd old row (a task id with a space)
-- is kept rather than lost. What was repaired above is validated.
alter table public.image_generations
  add constraint taskbeam_task_id check (task_id ~ '^[A-Za-z0-9_-]{1,128}$') not valid,
  add constraint taskbeam_prompt check (char_length(prompt) between 1 and 32000) not valid,
  add constraint taskbeam_params check (jsonb_typeof(params) = 'object' and octet_length(params::text) <= 65536) not valid,
  add constraint taskbeam_outcome check (
    case status
      when 'completed' then result is not null and error is null
      when 'failed' then error is not null and result is null
      else result is null and error is null
    end) not valid,
  add constraint taskbeam_result check (char_length(result) between 1 and 1000000) not valid,
  add constraint taskbeam_error check (char_length(error) between 1 and 2000 and char_length(error_code) <= 64) not valid,
  add constraint taskbeam_progress check (progress between 0 and 100) not valid,
  add constraint taskbeam_report check (
    char_length(message) <= 500 and octet_length(preview) <= 32768
    and step between 0 and 1000000 and steps between 0 and 1000000) not valid,
  add constraint taskbeam_cancelled check (not cancelled or status = 'failed') not valid,
  add constraint taskbeam_counters check (
    attempt >= 1 and delivery >= 1 and version >= 1 and status_version between 1 and version) not valid,
  add constraint taskbeam_batch_id check (batch_id ~ '^[A-Za-z0-9_-]{1,64}$') not valid;
alter table public.image_generations validate constraint taskbeam_prompt;
alter table public.image_generations validate constraint taskbeam_outcome;
alter table public.image_generations validate constraint taskbeam_progress;
alter table public.image_generations validate constraint taskbeam_counters;

-- Every update makes a new version of the row: leave it room on its page.
alter table public.image_generations set (fillfactor = 80);

create index image_generations_owner on public.image_generations (user_id, created_at desc, task_id desc);
create index image_generations_deadline on public.image_generations (deadline_at)
  where status in ('pending', 'processing');
create index image_generations_finished on public.image_generations (updated_at desc) where status = 'completed';
create index image_generations_batch on public.image_generations (batch_id) where batch_id is not null;

-- The log ----------------------------------------------------------------------------------------------------

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
create index task_events_at on public.task_events (at);

create function taskbeam.append_events(ids text[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
  perform from taskbeam.owners o
    where o.user_id in (select t.user_id from public.image_generations t where t.task_id = any (ids))
    order by o.user_id for no key update;
  with changed as (
    select * from public.image_generations t where t.task_id = any (ids) and t.user_id is not null
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
end $$;

create function taskbeam.log_changes() returns trigger
language plpgsql security definer set search_path = '' as $$
declare ids text[];
begin
  if tg_op = 'INSERT' then
    insert into taskbeam.owners (user_id) select distinct n.user_id from new_rows n where n.user_id is not null
      order by 1 on conflict do nothing;
    select array_agg(n.task_id) into ids from new_rows n;
  else
    select array_agg(n.task_id) into ids from new_rows n join old_rows o using (task_id) where n.version > o.version;
  end if;
  if ids is not null then
    perform taskbeam.append_events(ids);
  end if;
  return null;
end $$;

-- Rows that were here before: their state is their version 1.
insert into taskbeam.owners (user_id) select distinct user_id from public.image_generations where user_id is not null;
select taskbeam.append_events(array(select task_id from public.image_generations));
update public.task_events e set at = t.updated_at from public.image_generations t where t.task_id = e.task_id;

create trigger taskbeam_log_inserts after insert on public.image_generations
  referencing new table as new_rows for each statement execute function taskbeam.log_changes();
create trigger taskbeam_log_updates after update on public.image_generations
  referencing old table as old_rows new table as new_rows for each statement execute function taskbeam.log_changes();

-- A change by somebody who does not know versions (the app's own route, the table editor): it is held to the
-- state machine, versioned like ours, and announced, since its author will not publish it.
create function taskbeam.adopt_change() returns trigger language plpgsql set search_path = '' as $$
begin
  if new.task_id <> old.task_id or new.user_id is distinct from old.user_id then
    raise exception 'task % : task_id and user_id never change', old.task_id using errcode = 'check_violation';
  end if;
  if old.status = 'failed' and new.status = 'pending' then
    new.attempt := old.attempt + 1;
    new.delivery := 1;
    new.cancelled := false;
    new.progress := null; new.message := null; new.preview := null; new.step := null; new.steps := null;
    new.deadline_at := clock_timestamp() + interval '15 minutes';
  elsif old.status in ('completed', 'failed')
        and (new.status <> old.status or new.result is distinct from old.result or new.error is distinct from old.error) then
    raise exception 'task % is %: a terminal state is final', old.task_id, old.status using errcode = 'check_violation';
  elsif old.status = 'processing' and new.status = 'pending' then
    raise exception 'task % is processing and cannot become pending again', old.task_id using errcode = 'check_violation';
  end if;
  if new.status <> 'completed' then
    new.result := null;
  end if;
  if new.status <> 'failed' then
    new.error := null; new.error_code := null;
  else
    new.error := left(coalesce(nullif(new.error, ''), 'failed for an unknown reason'), 2000);
    new.error_code := coalesce(new.error_code, 'unknown');
  end if;
  new.version := old.version + 1;
  if new.status <> old.status or new.attempt <> old.attempt then
    new.status_version := new.version;
  else
    new.status_version := old.status_version;
  end if;
  new.updated_at := clock_timestamp();
  perform pg_notify('taskbeam', new.task_id || ' ' || new.version);
  return new;
end $$;

create trigger taskbeam_adopt before update on public.image_generations for each row
  when (old.version = new.version and
        (old.status, old.result, old.error, old.error_code, old.prompt, old.params, old.progress, old.message, old.preview,
         old.step, old.steps, old.attempt, old.delivery, old.cancelled, old.task_id, old.user_id, old.batch_id)
        is distinct from
        (new.status, new.result, new.error, new.error_code, new.prompt, new.params, new.progress, new.message, new.preview,
         new.step, new.steps, new.attempt, new.delivery, new.cancelled, new.task_id, new.user_id, new.batch_id))
  execute function taskbeam.adopt_change();

-- The outgoing messages: written with the task, sent after the commit -----------------------------------------

create table taskbeam.dispatches (
  task_id text not null references public.image_generations (task_id) on delete cascade,
  attempt integer not null,
  next_at timestamptz not null default now(),  -- when it is to be sent (again)
  tries integer not null default 0,            -- counted when a sender takes it, so that a crash counts
  leased_until timestamptz,
  sent_at timestamptz,
  message_id text,                             -- at the provider
  last_error text check (char_length(last_error) <= 2000),
  created_at timestamptz not null default now(),
  primary key (task_id, attempt)
);
create index dispatches_due on taskbeam.dispatches (next_at) where sent_at is null;

-- Signed callbacks that were taken, by the id in their signature; kept until that has expired.
create table taskbeam.callbacks_seen (
  jti text primary key check (char_length(jti) <= 128),
  seen_at timestamptz not null default now()
);
create index callbacks_seen_at on taskbeam.callbacks_seen (seen_at);

-- Keys that every process of a deployment shares and nobody has to configure.
create table taskbeam.secrets (name text primary key, value bytea not null);
insert into taskbeam.secrets
  values ('progress_token', sha256((gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text)::bytea));

-- Who may what -------------------------------------------------------------------------------------------------

alter table public.image_generations enable row level security;
alter table public.image_generations force row level security;
alter table public.task_events enable row level security;
alter table public.task_events force row level security;

revoke all on public.image_generations, public.task_events from public, anon, authenticated, service_role;
revoke all on all tables in schema taskbeam from public, anon, authenticated, service_role;
revoke all on all functions in schema taskbeam from public, anon, authenticated, service_role;

-- `(select auth.uid())` is computed once a statement; a bare auth.uid() once a row.
create policy taskbeam_read on public.image_generations for select to authenticated using (user_id = (select auth.uid()));
create policy taskbeam_create on public.image_generations for insert to authenticated with check (user_id = (select auth.uid()));
create policy taskbeam_service on public.image_generations for all to service_role using (true) with check (true);
create policy taskbeam_read on public.task_events for select to authenticated using (user_id = (select auth.uid()));
create policy taskbeam_service on public.task_events for all to service_role using (true) with check (true);

-- The owner's functions write the log, and forced policies hold for owners too.
do $$ begin
  execute format('create policy taskbeam_owner on public.image_generations for all to %I using (true) with check (true)', current_user);
  execute format('create policy taskbeam_owner on public.task_events for all to %I using (true) with check (true)', current_user);
end $$;

grant select on public.image_generations, public.task_events to authenticated;
grant insert (task_id, user_id, prompt, params, batch_id, deadline_at) on public.image_generations to authenticated;
grant select, insert, update, delete on public.image_generations to service_role;
grant select, delete on public.task_events to service_role;
grant select on taskbeam.owners, taskbeam.secrets to service_role;
grant select, insert, update, delete on taskbeam.dispatches to service_role;
grant select, insert, delete on taskbeam.callbacks_seen to service_role;
grant execute on function taskbeam.ensure_user(uuid), taskbeam.act_as(text) to service_role;

-- What readers see: a task as it was at one version. Row level security of both tables holds for whoever asks.
create view taskbeam.changes with (security_invoker = true) as
select e.task_id, e.user_id, e.version, e.owner_seq, e.status_version, e.status, e.attempt, e.delivery,
       e.progress, e.message, case when e.version = t.version then t.preview end as preview, e.step, e.steps,
       e.result, e.error, e.error_code, e.cancelled, e.at,
       t.prompt, t.params, t.batch_id, t.created_at, e.version = t.version as newest
  from public.task_events e join public.image_generations t using (task_id);

grant usage on schema taskbeam to authenticated;
revoke all on taskbeam.changes from public, anon, authenticated, service_role;
grant select on taskbeam.changes to authenticated, service_role;
grant select (user_id, seq) on taskbeam.owners to authenticated;
alter table taskbeam.owners enable row level security;
create policy taskbeam_read on taskbeam.owners for select to authenticated using (user_id = (select auth.uid()));
create policy taskbeam_service on taskbeam.owners for all to service_role using (true) with check (true);
