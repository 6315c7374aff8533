-- The role that the processes log in as, in place of the owner of the tables: it may what the grants say. Once, after
-- the first `taskbeam migrate`; again to change its password, or after an upgrade that says so. For psql, which takes
-- the password from its environment:
--   LOGIN_PASSWORD=… psql "$OWNER_URL" -f login.sql
\set ON_ERROR_STOP on
set client_min_messages to warning;
\getenv password LOGIN_PASSWORD
\if :{?password}
\else
  do $$ begin raise exception 'LOGIN_PASSWORD is not set: nothing was changed'; end $$;
\endif
select 'create role taskbeam login noinherit'
where not exists (select from pg_roles where rolname = 'taskbeam') \gexec
alter role taskbeam password :'password';
grant authenticated, service_role to taskbeam;

-- How each of its connections begins, also those that a pooler opens, through which a process cannot say it itself.
alter role taskbeam set role = 'service_role';
alter role taskbeam set timezone = 'UTC';
alter role taskbeam set statement_timeout = '3000';
alter role taskbeam set idle_in_transaction_session_timeout = '3000';
alter role taskbeam set jit = 'off';
alter role taskbeam set enable_bitmapscan = 'off';
