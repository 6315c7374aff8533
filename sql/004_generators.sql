-- Several generators: which one a task asked for. Null is the usual one. A retry goes to the same one, and what
-- browsers see of a task is unchanged.

alter table public.image_generations add column if not exists generator text;
alter table public.image_generations add constraint taskbeam_generator check (char_length(generator) <= 64);
comment on column public.image_generations.generator is 'name of the generator that was asked for; null: the usual one';

grant insert (generator) on public.image_generations to authenticated;
