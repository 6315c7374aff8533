-- What happens to a task past its deadline, and the ledger of what was said about it.
--
-- LOOKUPS. A process that looks a task up at the provider takes it under a lease, counted as it is taken, so that a
-- crash counts and another process takes over. A task that is overdue is looked up at once and then, where that did
-- not end it, from lookup_at on; one that nobody has begun with is looked up at lookup_at.
--
-- THE LEDGER has a row for each callback, webhook and finishing report that was verified, written in the statement
-- that makes the change or refuses it. A good result that came too late is kept there, for a retry to adopt.

alter table taskbeam.dispatches
  add column lookup_at timestamptz,                         -- null: not before its task is overdue
  add column lookup_leased_until timestamptz,
  add column lookups integer not null default 0,            -- of this attempt, since it was overdue
  add column lookups_failed integer not null default 0,     -- of those or others, one after the other
  add column resends integer not null default 0;            -- each after the message had vanished at the provider
create index dispatches_lookup on taskbeam.dispatches (lookup_at) where lookup_at is not null;

create table public.task_deliveries (
  task_id text not null references public.image_generations (task_id) on delete cascade,
  user_id uuid,
  at timestamptz not null default clock_timestamp(),
  attempt integer not null,
  delivery integer not null,
  kind text not null check (kind in (
    'callback',  -- QStash's, signed
    'webhook',   -- the generator's provider's, signed
    'report',    -- the generator's, that ends its run, with the token of the run
    'lookup'     -- found among the provider's dead letters: the callback had not come
  )),
  outcome text not null check (outcome in (
    'applied',   -- it changed the task
    'duplicate', -- it said what was so already
    'stale'      -- it came too late, or out of turn
  )),
  status integer,                                           -- HTTP status of the generator's answer; 0: none came
  result text check (char_length(result) between 1 and 1000000)  -- a good one that came too late
);
create index task_deliveries_task on public.task_deliveries (task_id, at);

alter table public.task_deliveries enable row level security;
alter table public.task_deliveries force row level security;
revoke all on public.task_deliveries from public, anon, authenticated, service_role;

create policy taskbeam_read on public.task_deliveries for select to authenticated using (user_id = (select auth.uid()));
create policy taskbeam_service on public.task_deliveries for all to service_role using (true) with check (true);
create policy taskbeam_only_own on public.task_deliveries as restrictive for all to public
  using (current_user <> 'authenticated' or user_id = (select auth.uid()));
do $$
begin
  -- Rows go with their task, whoever deletes it, and forced policies hold for owners too.
  execute format('create policy taskbeam_owner on public.task_deliveries for all to %I using (true) with check (true)', current_user);
end $$;
grant select on public.task_deliveries to authenticated;
grant select, insert on public.task_deliveries to service_role;

-- A picture that came too late goes with its task.
create function taskbeam.note_discarded_results() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into taskbeam.discarded_pictures (name)
    select distinct substr(o.result, 10) from old_rows o where o.result ~ '^/results/[A-Za-z0-9_-]{22,64}\.(png|jpg|webp)$'
    on conflict do nothing;
  return null;
end $$;
create trigger taskbeam_discarded_results after delete on public.task_deliveries
  referencing old table as old_rows for each statement execute function taskbeam.note_discarded_results();
revoke all on function taskbeam.note_discarded_results() from public, anon, authenticated, service_role;

-- Our dispatcher's dead letters are found by where they were to go, which may be longer than a tree could index.
create index messages_dead on dispatcher.messages using hash (url) where state = 'failed';
create index messages_dead_ids on dispatcher.messages (dlq_id) where state = 'failed';
