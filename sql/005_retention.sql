-- What goes: tasks that ended long ago, the log of tasks that ended a while ago, and what somebody deletes.
--
-- A DELETED TASK leaves a line in taskbeam.deletions, whoever deletes it and however (a cascade from its user, the
-- table editor): the tick finds it there like a change, and whoever follows the task is told that it is gone. Its
-- picture's name is left in taskbeam.discarded_pictures until the file is gone.
--
-- THE LOG of a task that ended is cut down to its newest event. A cursor from before the cut cannot be continued:
-- for one task that shows (its log does not begin at 1), for an owner's stream owners.trimmed says up to where.

create table taskbeam.deletions (
  task_id text not null,
  user_id uuid not null,
  at timestamptz not null default clock_timestamp(),
  xact xid8 not null default pg_current_xact_id(),
  last bytea  -- how it ended, where that was in the same transaction: the snapshot its followers are still to see
);
create index deletions_xact on taskbeam.deletions (xact);
create index deletions_at on taskbeam.deletions (at);

create table taskbeam.discarded_pictures (name text primary key);

create function taskbeam.note_deletions() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into taskbeam.deletions (task_id, user_id)
    select o.task_id, o.user_id from old_rows o where o.user_id is not null;
  if found then
    perform pg_notify('taskbeam', '');
  end if;
  -- Not one that another task shows as well.
  insert into taskbeam.discarded_pictures (name)
    select distinct substr(o.result, 10) from old_rows o
     where o.result ~ '^/results/[A-Za-z0-9_-]{22,64}\.(png|jpg|webp)$'
       and not exists (select from public.image_generations t where t.result = o.result and t.result like '/results/%')
    on conflict do nothing;
  return null;
end $$;
create trigger taskbeam_deletions after delete on public.image_generations
  referencing old table as old_rows for each statement execute function taskbeam.note_deletions();

create index taskbeam_tasks_picture on public.image_generations (result) where result like '/results/%';

alter table taskbeam.owners add column trimmed bigint not null default 0;
comment on column taskbeam.owners.trimmed is 'events up to this number may be missing from the log';

-- How far the cutting of logs has come, by the time of the event that ended a task.
create table taskbeam.trimming (only_row boolean primary key default true check (only_row), reached timestamptz not null);
insert into taskbeam.trimming (reached) values ('-infinity');
create index task_events_ended on public.task_events (at)
  where status in ('completed', 'failed') and version = status_version;

-- Only tasks that were accepted here are deleted for their age, not what an older app wrote into its own table.
create index dispatches_created on taskbeam.dispatches (created_at, task_id) where attempt = 1;

revoke all on taskbeam.deletions, taskbeam.discarded_pictures, taskbeam.trimming
  from public, anon, authenticated, service_role;
revoke all on function taskbeam.note_deletions() from public, anon, authenticated, service_role;
grant select, delete, update (last) on taskbeam.deletions to service_role;
grant select, update, delete on taskbeam.discarded_pictures to service_role;  -- update: to lock what it takes
grant select, update on taskbeam.trimming to service_role;
grant select (trimmed) on taskbeam.owners to authenticated;
grant update (trimmed) on taskbeam.owners to service_role;
