-- The tasks, and who may see them. Their log is in 003_log.sql.
--
-- Over the image_generations of an older app (000_ground.sql) its rows, defaults, policies and triggers stay, what is
-- missing is added, and what contradicts itself is repaired.
--
-- THE STATE MACHINE of a task (003_log.sql refuses any other change, whoever makes it)
--
--     pending ──▶ processing ──▶ completed        completed is final
--        │             └───────▶ failed           failed ──▶ pending is an explicit retry: a new attempt
--        └──▶ completed | failed                  (a generator that reports nothing is never `processing`)
--
-- A browser's own session may insert pending tasks of its user, and nothing else. A row without user, in an older
-- table, is nobody's: it is kept, and only service_role sees it.

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
      user_id uuid not null constraint taskbeam_user_id references auth.users (id) on delete cascade,
      task_id text not null constraint taskbeam_task_id_key unique,
      status public.image_generation_status not null default 'pending',
      result text,
      error text,
      prompt text not null,
      created_at timestamptz not null default now(),
      updated_at timestamptz not null default now()
    );
  end if;
end $$;

alter table public.image_generations
  -- timezone('utc', now()) is wrong by the session's offset
  alter created_at set default now(),
  alter updated_at set default now(),
  alter status set default 'pending',
  add column if not exists params jsonb,
  add column if not exists progress smallint,           -- percent of this run; null: nothing reported yet
  add column if not exists message text,                -- what the generator says it is doing
  add column if not exists preview text,                -- URL (or small data URL) of an unfinished picture
  add column if not exists step integer,
  add column if not exists steps integer,
  add column if not exists error_code text,             -- stable word for programs: timeout, generator_error, …
  add column if not exists cancelled boolean default false,
  add column if not exists attempt integer default 1,         -- runs asked for: 1, and one more with each retry
  add column if not exists delivery integer default 1,        -- deliveries within this run, as far as is known
  add column if not exists version integer default 1,         -- of this task: 1, 2, 3 … without gaps
  add column if not exists status_version integer default 1,  -- version of the last change of status or attempt
  add column if not exists batch_id text,
  -- Since when the time of this run counts. Null: nobody has begun (the message waits, or has not been claimed).
  add column if not exists began_at timestamptz,
  -- When it is given up. The defaults are for rows that others insert; nothing stays open for ever.
  add column if not exists deadline_at timestamptz;

comment on column public.image_generations.version is 'of this task: 1, 2, 3 without gaps; taken in the statement that makes the change';
comment on column public.image_generations.status_version is 'version of the last change of status or attempt';

-- Old rows -----------------------------------------------------------------------------------------------------
-- What contradicts itself is settled in favour of what was made: otherwise every later update would be refused.

-- The app's own triggers (updated_at = now(), say) are not meant for this.
create temporary table resting on commit drop as
  select tgname, tgenabled from pg_trigger
   where tgrelid = 'public.image_generations'::regclass and not tgisinternal and tgenabled <> 'D';
do $$
declare name text;
begin
  for name in select tgname from resting loop
    execute format('alter table public.image_generations disable trigger %I', name);
  end loop;
end $$;

update public.image_generations set status = 'completed'
 where (status is null or status in ('pending', 'processing')) and result <> '';
update public.image_generations set status = 'failed'
 where (status is null or status in ('pending', 'processing')) and error <> '';
update public.image_generations set status = 'pending' where status is null;
update public.image_generations set status = 'failed', error = coalesce(nullif(error, ''), 'completed without a result')
 where status = 'completed' and coalesce(result, '') = '';
update public.image_generations set error = null where status = 'completed' and error is not null;
update public.image_generations set error = 'failed for an unknown reason' where status = 'failed' and coalesce(error, '') = '';
update public.image_generations set result = null where status = 'failed' and result is not null;
update public.image_generations set result = null, error = null
 where status in ('pending', 'processing') and (result is not null or error is not null);
update public.image_generations set error = left(error, 2000) where char_length(error) > 2000;
update public.image_generations set error_code = 'unknown' where status = 'failed' and error_code is null;
update public.image_generations set prompt = '(no prompt)' where coalesce(prompt, '') = '';
update public.image_generations set prompt = left(prompt, 32000) where char_length(prompt) > 32000;
update public.image_generations
   set created_at = coalesce(created_at, updated_at, now()), updated_at = coalesce(updated_at, created_at, now())
 where created_at is null or updated_at is null;
update public.image_generations set task_id = gen_random_uuid()::text where task_id is null;
-- Of tasks with one id, the one that came furthest keeps it, then the newest.
update public.image_generations t set task_id = left(t.task_id, 91) || '_' || gen_random_uuid()
  from (select ctid, row_number() over (
          partition by task_id order by status = 'completed' desc, status = 'failed' desc, created_at desc) as n
          from public.image_generations) twins
 where t.ctid = twins.ctid and twins.n > 1;
-- Columns of these names that were there before begin as ours do; all that was open has a deadline from now on.
update public.image_generations
   set params = case when jsonb_typeof(params) = 'object' and octet_length(params::text) <= 98304 then params else '{}' end,
       progress = case when progress between 0 and 100 then progress end,
       message = left(message, 500), preview = case when octet_length(preview) <= 32768 then preview end,
       step = case when step between 0 and 1000000 then step end,
       steps = case when steps between 0 and 1000000 then steps end,
       error_code = left(error_code, 64), cancelled = coalesce(cancelled and status = 'failed', false),
       attempt = 1, delivery = 1, version = 1, status_version = 1,
       batch_id = case when batch_id ~ '^[A-Za-z0-9_-]{1,64}$' then batch_id end,
       began_at = case when status in ('pending', 'processing') then now() else created_at end,
       deadline_at = case when status in ('pending', 'processing') then now() + interval '15 minutes' end
 where true;

alter table public.image_generations
  alter task_id set not null,
  alter status set not null,
  alter prompt set not null,
  alter created_at set not null,
  alter updated_at set not null,
  alter params set default '{}', alter params set not null,
  alter cancelled set default false, alter cancelled set not null,
  alter attempt set default 1, alter attempt set not null,
  alter delivery set default 1, alter delivery set not null,
  alter version set default 1, alter version set not null,
  alter status_version set default 1, alter status_version set not null,
  alter began_at set default now(),
  alter deadline_at set default now() + interval '15 minutes';

do $$
declare
  generations constant regclass := 'public.image_generations';
  user_column constant int2 := (select attnum from pg_attribute where attrelid = generations and attname = 'user_id');
  task_column constant int2 := (select attnum from pg_attribute where attrelid = generations and attname = 'task_id');
  key record;
begin
  -- Where the users are ours, those of the old rows are entered.
  if obj_description('auth.users'::regclass, 'pg_class') = 'kept by taskbeam' then
    insert into auth.users (id) select distinct user_id from public.image_generations where user_id is not null;
  end if;

  -- The key to users must cascade: a deleted user leaves no task behind.
  for key in select conname from pg_constraint where conrelid = generations and contype = 'f' and confdeltype <> 'c'
                and confrelid = 'auth.users'::regclass and conkey = array[user_column] loop
    execute format('alter table public.image_generations drop constraint %I', key.conname);
  end loop;
  if not exists (select from pg_constraint where conrelid = generations and contype = 'f'
                    and confrelid = 'auth.users'::regclass and conkey = array[user_column]) then
    alter table public.image_generations add constraint taskbeam_user_id
      foreign key (user_id) references auth.users (id) on delete cascade not valid;
    -- Rows of users who are gone are kept, and the key holds for all later ones.
    if not exists (select from public.image_generations t
                    where t.user_id is not null and not exists (select from auth.users u where u.id = t.user_id)) then
      alter table public.image_generations validate constraint taskbeam_user_id;
    end if;
  end if;

  if not exists (select from pg_index where indrelid = generations and indisunique and indisvalid and indimmediate
                    and indnatts = 1 and indpred is null and indkey[0] = task_column) then
    alter table public.image_generations add constraint taskbeam_task_id_key unique (task_id);
  end if;
end $$;

do $$
declare row record;
begin
  for row in select * from resting loop
    execute format('alter table public.image_generations enable %s trigger %I',
                   case row.tgenabled when 'R' then 'replica' when 'A' then 'always' else '' end, row.tgname);
  end loop;
end $$;

-- What holds for every row. Named apart from the app's own constraints.
alter table public.image_generations
  add constraint taskbeam_status check (status in ('pending', 'processing', 'completed', 'failed')),
  add constraint taskbeam_outcome check (
    case status
      when 'completed' then result is not null and error is null
      when 'failed' then error is not null and result is null
      else result is null and error is null
    end),
  add constraint taskbeam_prompt check (char_length(prompt) between 1 and 32000),
  -- 64 KiB of JSON are up to half as much again as jsonb writes it, with a space after each comma
  add constraint taskbeam_params check (jsonb_typeof(params) = 'object' and octet_length(params::text) <= 98304),
  add constraint taskbeam_error check (char_length(error) between 1 and 2000 and char_length(error_code) <= 64),
  add constraint taskbeam_progress check (progress between 0 and 100),
  add constraint taskbeam_report check (
    char_length(message) <= 500 and octet_length(preview) <= 32768
    and step between 0 and 1000000 and steps between 0 and 1000000),
  add constraint taskbeam_cancelled check (not cancelled or status = 'failed'),
  add constraint taskbeam_counters check (
    attempt >= 1 and delivery >= 1 and version >= 1 and status_version between 1 and version),
  add constraint taskbeam_batch_id check (batch_id ~ '^[A-Za-z0-9_-]{1,64}$');

-- Old rows with an id or a result such as we would not take are kept as they are, and can still be finished: a
-- constraint that is merely NOT VALID would refuse every update of them, and with it every statement they are part of.
do $$
declare
  task_id_rule constant text := 'task_id ~ ''^[A-Za-z0-9_-]{1,128}$''';
  result_rule constant text := 'char_length(result) between 1 and 1000000';
  until timestamptz;
  older text;
begin
  execute format('select max(created_at) from public.image_generations where not (%s) or not (%s)', task_id_rule, result_rule)
     into until;
  older := case when until is null then '' else format(' or created_at <= %L', until) end;
  execute format('alter table public.image_generations add constraint taskbeam_task_id check (%s%s)', task_id_rule, older);
  execute format('alter table public.image_generations add constraint taskbeam_result check (%s%s)', result_rule, older);
end $$;

-- Every update makes a new version of the row: leave it room on its page. For the same reason no index has a column
-- that every update changes; only then can the new version go without new index entries.
alter table public.image_generations set (fillfactor = 80);

create index taskbeam_tasks_owner on public.image_generations (user_id, created_at desc, task_id desc);
create index taskbeam_tasks_open on public.image_generations (user_id, created_at desc, task_id desc)
  where status in ('pending', 'processing');
create index taskbeam_tasks_deadline on public.image_generations (deadline_at) where status in ('pending', 'processing');
create index taskbeam_tasks_batch on public.image_generations (batch_id) where batch_id is not null;

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

-- Whoever had the run of the table keeps it: its owner, and roles of the older app's where there was no row level
-- security. Forced policies hold for owners too.
do $$
declare roles text;
begin
  select string_agg(quote_ident(r.rolname), ', ') into roles from pg_roles r
   where r.rolname not in ('anon', 'authenticated', 'service_role')
     and (r.rolname = current_user or exists (
            select from pg_class c where c.oid = 'public.image_generations'::regclass
               and (c.relowner = r.oid or (not c.relrowsecurity and exists (
                     select from aclexplode(c.relacl) a where a.grantee = r.oid)))));
  execute format('create policy taskbeam_owner on public.image_generations for all to %s using (true) with check (true)', roles);
end $$;

alter table public.image_generations enable row level security;
alter table public.image_generations force row level security;

revoke all on public.image_generations from public, anon, authenticated, service_role;
revoke all on all tables in schema taskbeam from public, anon, authenticated, service_role;
revoke all on all functions in schema taskbeam from public, anon, authenticated, service_role;

-- `(select auth.uid())` is computed once a statement; a bare auth.uid() once a row.
create policy taskbeam_read on public.image_generations for select to authenticated using (user_id = (select auth.uid()));
create policy taskbeam_create on public.image_generations for insert to authenticated
  with check (user_id = (select auth.uid()) and status = 'pending');
create policy taskbeam_service on public.image_generations for all to service_role using (true) with check (true);

-- Permissive policies add up, and the older app's may be generous (`using (true)` is the dashboard's first template).
-- Restrictive ones cannot be outvoted. Not `to authenticated`: that would hold for an owner who is its member.
create policy taskbeam_only_own on public.image_generations as restrictive for all to public
  using (current_user <> 'authenticated' or user_id = (select auth.uid()))
  with check (current_user <> 'authenticated' or (user_id = (select auth.uid()) and status = 'pending'));

grant select on public.image_generations to authenticated;
grant insert (task_id, user_id, prompt, status, params, batch_id, began_at) on public.image_generations to authenticated;
grant select, insert, update, delete on public.image_generations to service_role;
grant select, insert, update, delete on taskbeam.dispatches to service_role;
grant select, insert, delete on taskbeam.callbacks_seen to service_role;
grant select on taskbeam.secrets to service_role;
grant execute on function taskbeam.act_as(text) to service_role;
