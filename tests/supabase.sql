-- What a Supabase project has before its owner does anything, as far as it matters to us. After the init scripts and
-- migrations of github.com/supabase/postgres; run by supabase_admin, the superuser.

alter role postgres nosuperuser createdb createrole login replication bypassrls;
alter role postgres set search_path to "$user", public, extensions;

create schema extensions;
create publication supabase_realtime;
alter publication supabase_realtime owner to postgres;

create role anon nologin inherit;
create role authenticated nologin inherit;
create role service_role nologin inherit bypassrls;
create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role to postgres with admin option;
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';

grant usage on schema public to postgres, anon, authenticated, service_role;
grant usage on schema extensions to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on functions to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on sequences to postgres, anon, authenticated, service_role;

create role supabase_auth_admin login noinherit createrole;
create schema auth authorization supabase_admin;
grant all on schema auth to supabase_auth_admin;
create table auth.users (
  instance_id uuid,
  id uuid primary key,
  email varchar(255) unique,
  created_at timestamptz,
  updated_at timestamptz
);
comment on table auth.users is 'Auth: Stores user login data within a secure schema.';
alter table auth.users enable row level security;
alter table auth.users owner to supabase_auth_admin;
create function auth.uid() returns uuid language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
  )::uuid
$$;
alter function auth.uid() owner to supabase_auth_admin;
grant usage on schema auth to postgres, anon, authenticated, service_role;
set role supabase_auth_admin;
grant all on table auth.users to postgres;
reset role;

-- PostgREST hears of changes of the schema.
create function extensions.pgrst_ddl_watch() returns event_trigger language plpgsql as $$
declare cmd record;
begin
  for cmd in select * from pg_event_trigger_ddl_commands() loop
    if cmd.command_tag in ('CREATE SCHEMA', 'CREATE TABLE', 'ALTER TABLE', 'CREATE VIEW', 'CREATE FUNCTION', 'CREATE TYPE', 'COMMENT') then
      notify pgrst, 'reload schema';
    end if;
  end loop;
end $$;
create event trigger pgrst_ddl_watch on ddl_command_end execute function extensions.pgrst_ddl_watch();
create function extensions.pgrst_drop_watch() returns event_trigger language plpgsql as $$
begin
  if exists (select from pg_event_trigger_dropped_objects() where object_type in ('table', 'view', 'function', 'type')) then
    notify pgrst, 'reload schema';
  end if;
end $$;
create event trigger pgrst_drop_watch on sql_drop execute function extensions.pgrst_drop_watch();
