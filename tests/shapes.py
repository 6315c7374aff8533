"""What differs between projects at Supabase, as far as a migration meets it; run by its superuser before we come."""

# New tables in `public` are everyone's, and only row level security holds them back.
OLD_GRANTS = """
alter default privileges for role postgres in schema public grant all on tables to anon, authenticated, service_role;
"""

# Projects made since hand out no rows by default, but still TRUNCATE, REFERENCES and TRIGGER.
NEW_GRANTS = """
alter default privileges for role postgres in schema public
  revoke select, insert, update, delete on tables from anon, authenticated, service_role;
"""

# Somebody has opened all that `postgres` will ever make, in every schema; on plain Postgres, too.
GENEROUS_DEFAULTS = """
alter default privileges for role postgres grant all on tables to public, anon, authenticated, service_role;
alter default privileges for role postgres grant all on sequences to public, anon, authenticated, service_role;
alter default privileges for role postgres grant all on functions to public, anon, authenticated, service_role;
alter default privileges for role postgres grant all on schemas to public, anon, authenticated, service_role;
"""
# And an event trigger sees to the rest: it grants what was just made, as those for GraphQL do, and turns on row level
# security in `public`.
HANDS_OUT = """
create function extensions.hand_out() returns event_trigger language plpgsql as $$
declare made record;
begin
  for made in select * from pg_event_trigger_ddl_commands() loop
    if made.object_type in ('table', 'view') then
      execute format('grant all on %s to anon, authenticated, service_role', made.object_identity);
    elsif made.object_type = 'function' then
      execute format('grant all on function %s to anon, authenticated, service_role', made.object_identity);
    end if;
    if made.command_tag = 'CREATE TABLE' and made.schema_name = 'public' then
      execute format('alter table %s enable row level security', made.object_identity);
    end if;
  end loop;
end $$;
create event trigger hand_out on ddl_command_end when tag in ('CREATE TABLE', 'CREATE VIEW', 'CREATE FUNCTION')
  execute function extensions.hand_out();
"""
GENEROUS = GENEROUS_DEFAULTS + HANDS_OUT

# Realtime was turned on for everything, and pg_cron is there.
PUBLISHED = """
drop publication supabase_realtime;
create publication supabase_realtime for all tables;
create schema cron;
create table cron.job (jobid bigint generated always as identity primary key, jobname text, schedule text,
                       command text);
create function cron.schedule(job_name text, schedule text, command text) returns bigint language sql as
  'insert into cron.job (jobname, schedule, command) values ($1, $2, $3) returning jobid';
grant usage on schema cron to postgres;
grant select on cron.job to postgres;
"""

SHAPES = {"old grants": OLD_GRANTS, "new grants": NEW_GRANTS, "generous": GENEROUS, "published": PUBLISHED}
