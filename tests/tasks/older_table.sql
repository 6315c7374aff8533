-- As a tutorial would have it: an enum of its own, a default that is wrong off UTC, a key that keeps a user from going,
-- a trigger that touches every update, and the policies that the dashboard suggests. In braces what differs between apps.

create type public.generation_state as enum ({labels});
create table public.image_generations (
  id uuid primary key default gen_random_uuid(),
  user_id uuid references auth.users (id),
  task_id {text},
  status public.generation_state default 'pending',
  prompt {text},
  result {text},
  error {text},
  is_favourite boolean default false,
  created_at {time} default timezone('utc', now()),
  updated_at {time} default timezone('utc', now())
);
create index image_generations_task_id_key on public.image_generations (task_id);
create function public.touch() returns trigger language plpgsql as
  $$ begin new.updated_at := timezone('utc', now()); return new; end $$;
create trigger update_updated_at before update on public.image_generations for each row execute function public.touch();
alter table public.image_generations enable row level security;
create policy "own rows" on public.image_generations for select to authenticated using (auth.uid() = user_id);
create policy "own inserts" on public.image_generations for insert with check (auth.uid() = user_id);
create policy "Enable read access for all users" on public.image_generations for select using (true);
create view public.gallery with (security_invoker = true) as
  select id, prompt, result, created_at from public.image_generations where status = 'completed';
create view public.newest_picture as select max(created_at) as at from public.gallery;
comment on view public.gallery is 'what is shown';
revoke all on public.gallery from anon, authenticated, service_role;
grant select on public.gallery to service_role;
insert into public.image_generations (user_id, task_id, prompt, status, result, error, created_at, updated_at)
  select '00000000-0000-4000-8000-000000000001', 'old-' || n, 'picture ' || n,
         (array['completed', 'failed', 'pending', 'completed'])[1 + n % 4]::public.generation_state,
         case when n % 4 in (0, 3) then 'https://x/' || n end, case when n % 4 = 1 then 'no' end,
         timestamptz '2024-05-06 07:08:09+00' at time zone 'utc' + n * interval '1 s',
         timestamptz '2024-05-06 07:08:09+00' at time zone 'utc' + n * interval '2 s'
    from generate_series(1, 980) n;
