-- The messages of our own dispatcher, which speaks the QStash API.
--
--     created ──▶ active ──▶ delivered
--                  │  ▲
--                  ▼  │ (claimed again)
--                 retry ──▶ …          active ──▶ failed: the dead letters, with the last response
--     created | active | retry ──▶ canceled
--
-- A message is `active` under a lease. The delivery is counted at the claim, so that a message that kills its
-- dispatcher is not tried for ever; the fence rises with each claim, so that only the last holder can finish it.

create schema dispatcher;

create type dispatcher.message_state as enum (
  'created',    -- to be delivered for the first time, from due_at on
  'active',     -- a dispatcher holds it until leased_until, and renews that while it lives
  'retry',      -- a delivery failed; the next one is due at due_at
  'delivered',  -- final: the destination answered 2xx
  'failed',     -- final: deliveries exhausted, or refused for good; a dead letter until it is dropped
  'canceled'    -- final: deleted before it was delivered
);

create table dispatcher.messages (
  id text primary key,
  state dispatcher.message_state not null default 'created',
  kind text not null default 'message' check (kind in ('message', 'callback', 'failure_callback')),
  source_id text,                           -- of a callback: the message it tells of
  url text not null check (char_length(url) <= 8192),
  method text not null default 'POST' check (method in ('GET', 'POST', 'PUT', 'PATCH', 'DELETE')),
  header jsonb not null default '{}',       -- sent along: {"Name": ["value", …]}
  body bytea not null default '',
  max_retries integer not null check (max_retries between 0 and 1000),
  retry_delay text,                         -- expression in ms over `retried`; null: the protocol's backoff
  timeout_ms integer not null check (timeout_ms between 1 and 86400000),
  callback text,
  failure_callback text,
  callback_options jsonb not null default '{}',
  failure_callback_options jsonb not null default '{}',
  redact text[] not null default '{}',      -- what of it is shown as a hash: body, header, header[Name]
  labels text[] not null default '{}',
  caller_ip text not null default '',
  deliveries integer not null default 0,    -- counted at the claim
  not_before timestamptz not null default now(),  -- as the publisher asked for it
  due_at timestamptz not null default now(),      -- when the next delivery is due
  fence bigint not null default 0,
  leased_until timestamptz,
  created_at timestamptz not null default now(),
  finished_at timestamptz,
  dlq_id text,
  response_status integer,
  response_header jsonb,
  response_body bytea,
  check ((state = 'active') = (leased_until is not null)),
  check ((state in ('delivered', 'failed', 'canceled')) = (finished_at is not null))
) with (fillfactor = 70);

-- Two lanes: the news of a finished job does not wait behind the jobs that are still to be begun.
create index messages_due on dispatcher.messages (due_at, id)
  where state in ('created', 'retry') and kind = 'message';
create index callbacks_due on dispatcher.messages (due_at, id)
  where state in ('created', 'retry') and kind <> 'message';
create index messages_leased on dispatcher.messages (leased_until) where state = 'active';
create index messages_finished on dispatcher.messages (finished_at) where state in ('delivered', 'failed', 'canceled');

-- A queue's table turns over many times a day.
alter table dispatcher.messages set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

create table dispatcher.deduplications (
  id text primary key check (char_length(id) <= 512),
  message_id text not null,
  expires_at timestamptz not null default now() + interval '10 minutes'
);
create index deduplications_expiry on dispatcher.deduplications (expires_at);

create function dispatcher.announce() returns trigger language plpgsql set search_path = '' as $$
begin
  perform pg_notify('dispatcher', '');
  return null;
end $$;
create trigger announce after insert on dispatcher.messages for each statement execute function dispatcher.announce();

revoke all on schema dispatcher from public, anon, authenticated, service_role;
revoke all on all tables in schema dispatcher from public, anon, authenticated, service_role;
revoke all on all functions in schema dispatcher from public, anon, authenticated, service_role;
grant usage on schema dispatcher to service_role;
grant select, insert, update, delete on dispatcher.messages, dispatcher.deduplications to service_role;
