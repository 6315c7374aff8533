-- 20,000 tasks, a quarter of them of one user and the rest of 2,000, with their log
-- and messages: enough rows for an index to be worth it, and too unlike for averages.

set session_replication_role = replica;  -- the triggers' work is done in bulk below
insert into auth.users (id) select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid from generate_series(1, 2000) n;
insert into public.image_generations (task_id, user_id, prompt, status, result, error, created_at, version, status_version, deadline_at)
  select 'task_' || n, ('00000000-0000-4000-8000-' || lpad(case when n % 4 = 0 then '7' else (1 + n % 2000)::text end, 12, '0'))::uuid, 'a boat in a storm',
         (case when n % 100 = 0 then 'pending' when n % 10 = 0 then 'failed' else 'completed' end)::image_generation_status,
         case when n % 10 > 0 then '/results/' || n end, case when n % 100 > 0 and n % 10 = 0 then 'no' end,
         now() - n * interval '1 minute', 2, 2, now() + interval '10 minutes'
    from generate_series(1, 20000) n;
insert into taskbeam.owners (user_id, seq) select user_id, 2 * count(*) from public.image_generations group by 1;
insert into public.task_events (task_id, version, user_id, owner_seq, at, status_version, attempt, delivery, status, result, error, cancelled)
  select t.task_id, v, t.user_id, 2 * row_number() over (partition by t.user_id, v order by t.created_at) + v - 2, t.created_at,
         v, 1, 1, case v when 1 then 'pending' else t.status::text end, case v when 2 then t.result end, case v when 2 then t.error end, false
    from public.image_generations t, generate_series(1, 2) v;
-- One generator was talkative.
update public.image_generations set version = 3002 where task_id = 'task_4';
insert into public.task_events (task_id, version, user_id, owner_seq, status_version, attempt, delivery, status, cancelled, at)
  select task_id, v, user_id, 1000000 + v, 2, 1, 1, status::text, false, created_at
    from public.image_generations, generate_series(3, 3002) v where task_id = 'task_4';
insert into taskbeam.dispatches (task_id, attempt, next_at, created_at, tries, sent_at)
  select task_id, 1, created_at, created_at, 1, case when status <> 'pending' then created_at end from public.image_generations;
update public.image_generations set updated_at = created_at;
insert into public.task_deliveries (task_id, user_id, at, attempt, delivery, kind, outcome)
  select task_id, user_id, created_at, 1, 1, 'callback', 'applied' from public.image_generations;
insert into taskbeam.deletions (task_id, user_id, at) select 'gone_' || n, gen_random_uuid(), now() - n * interval '1 second'
  from generate_series(1, 20000) n;
insert into taskbeam.callbacks_seen (jti, seen_at) select 'jti_' || n, now() - n * interval '31 ms' from generate_series(1, 20000) n;
insert into dispatcher.messages (id, state, url, max_retries, timeout_ms, finished_at, created_at)
  select 'msg_' || n, (case when n % 100 = 0 then 'created' else 'delivered' end)::dispatcher.message_state, 'http://127.0.0.1/', 3, 1000,
         case when n % 100 > 0 then now() end, now() - n * interval '1 second' from generate_series(1, 20000) n;
insert into dispatcher.deduplications (id, message_id) select 'id:' || n, 'msg_' || n from generate_series(1, 20000) n;
set session_replication_role = origin;
analyze;
