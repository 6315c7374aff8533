create type public.generation_status as enum ('pending', 'processing', 'completed', 'failed');

create table public.image_generations (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id),
  task_id text not null unique,
  status public.generation_status not null default 'pending',
  prompt text not null,
  result text,
  error text,
  created_at timestamp not null default timezone('utc', now()),
  updated_at timestamp not null default timezone('utc', now())
);

alter table public.image_generations enable row level security;
create policy "own rows" on public.image_generations for select to authenticated using (auth.uid() = user_id);
create policy "own inserts" on public.image_generations for insert to authenticated with check (auth.uid() = user_id);
