-- What the first migrations left open where a database is generous: docs/rights.md has who may what.

-- Default privileges without a schema reach schemas too, and the tables of ours that stand in no list above.
revoke all on schema taskbeam from public, anon, authenticated, service_role;
grant usage on schema taskbeam to service_role, authenticated;
do $$
begin
  if obj_description('auth.users'::regclass, 'pg_class') = 'kept by taskbeam' then
    revoke all on schema auth from public, anon, authenticated, service_role;
    grant usage on schema auth to anon, authenticated, service_role;
    revoke all on auth.users from public, anon, authenticated, service_role;
  end if;
end $$;

-- A browser's own session may read the ledger without naming a task: not from end to end.
create index task_deliveries_user on public.task_deliveries (user_id, at desc);

-- A publication FOR ALL TABLES (Supabase's supabase_realtime can be that) takes these in as well, and Postgres then
-- refuses to update or delete rows that it could not name to a subscriber. The other tables have a primary key.
alter table taskbeam.deletions replica identity full;
alter table public.task_deliveries replica identity full;
