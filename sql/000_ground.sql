-- What must be there before the tasks: roles, users, and an older image_generations brought into shape.
--
-- Runs on plain Postgres 15 or newer, on Supabase, and over the image_generations of an app that polled until now.
-- A file of its own, because a value added to an enum can be used only after the commit that adds it. Nothing here
-- changes what the older app sees or may do.

-- Roles, as Supabase names them ------------------------------------------------------------------------------

do $$
declare role_name text;
begin
  foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
    if not exists (select from pg_roles where rolname = role_name) then
      begin
        execute format('create role %I nologin noinherit', role_name);
      exception when duplicate_object or unique_violation then null;  -- roles are the cluster's: another database was quicker
      end;
    end if;
    -- Since Postgres 16 whoever creates a role may administer it, but not yet take it on.
    if not pg_has_role(current_user, role_name,
                       case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end) then
      begin
        execute format('grant %I to %I', role_name, current_user);
      exception when insufficient_privilege then
        raise notice 'processes cannot log in as %, since it may not become %', current_user, role_name;
      end;
    end if;
  end loop;
end $$;

grant usage on schema taskbeam to service_role, authenticated;

-- Users: Supabase has auth.users; elsewhere a minimal one, filled as users come (taskbeam.enter_user) ----------

do $$
begin
  if to_regclass('auth.users') is null then
    create schema if not exists auth;
    create table auth.users (id uuid primary key, created_at timestamptz not null default now());
    comment on table auth.users is 'kept by taskbeam';
    grant usage on schema auth to anon, authenticated, service_role;
  end if;
  if to_regprocedure('auth.uid()') is null then
    create function auth.uid() returns uuid language sql stable set search_path = '' as
      $f$ select nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', '')::uuid $f$;
    grant execute on function auth.uid() to anon, authenticated, service_role;
  end if;
end $$;

-- The rest of the transaction runs as the caller. Not SECURITY DEFINER: there no role could be set.
create function taskbeam.act_as(claims text) returns void language sql as $$
  select set_config('role', 'authenticated', true), set_config('request.jwt.claims', claims, true)
$$;

-- An older table: refused with one clear line where it is not what we know -----------------------------------

create function pg_temp.older_columns() returns table (name text, type text, kind "char") language sql as $$
  select a.attname, format_type(a.atttypid, null), t.typtype
    from pg_attribute a join pg_type t on t.oid = a.atttypid
   where a.attrelid = to_regclass('public.image_generations') and a.attnum > 0 and not a.attisdropped
$$;

do $$
declare
  table_kind "char" := (select relkind from pg_class where oid = to_regclass('public.image_generations'));
  wanted record;
  found record;
  odd text;
begin
  if table_kind is null then
    return;
  elsif table_kind <> 'r' then
    raise exception 'public.image_generations is not an ordinary table';
  end if;
  for wanted in
    select * from (values
      ('user_id', array['uuid'], true),
      ('task_id', array['text', 'character varying', 'uuid'], true),
      ('status', null, true),
      ('result', array['text', 'character varying'], true),
      ('error', array['text', 'character varying'], true),
      ('prompt', array['text', 'character varying'], true),
      ('created_at', array['timestamp with time zone', 'timestamp without time zone'], true),
      ('updated_at', array['timestamp with time zone', 'timestamp without time zone'], true),
      -- what we would add is taken as it is where it fits
      ('params', array['jsonb'], false),
      ('progress', array['smallint', 'integer'], false),
      ('message', array['text'], false),
      ('preview', array['text'], false),
      ('step', array['integer'], false),
      ('steps', array['integer'], false),
      ('error_code', array['text'], false),
      ('cancelled', array['boolean'], false),
      ('attempt', array['integer'], false),
      ('delivery', array['integer'], false),
      ('version', array['integer'], false),
      ('status_version', array['integer'], false),
      ('batch_id', array['text'], false),
      ('began_at', array['timestamp with time zone'], false),
      ('deadline_at', array['timestamp with time zone'], false)
    ) as w (name, types, must) loop
    select * into found from pg_temp.older_columns() c where c.name = wanted.name;
    if found.name is null then
      if wanted.must then
        raise exception 'image_generations has no column %: this is not the table taskbeam knows', wanted.name;
      end if;
    elsif found.type <> all (wanted.types) then
      raise exception 'image_generations.% is %, but must be %', wanted.name, found.type, wanted.types[1];
    elsif wanted.name = 'status' and found.kind <> 'e' and found.type not in ('text', 'character varying') then
      raise exception 'image_generations.status is %, but must be an enum or text', found.type;
    end if;
  end loop;
  select min(status::text) into odd from public.image_generations
   where status::text not in ('pending', 'processing', 'completed', 'failed');
  if odd is not null then
    raise exception 'image_generations has rows whose status is %: set them to pending, processing, completed or failed', odd;
  end if;
end $$;

-- Its types: text for text, instants for times. Views on it are put back as they were --------------------------

create function pg_temp.retype(alterations text) returns void language plpgsql set search_path = '' as $$
declare
  seen record;
  grantee record;
begin
  create temporary table views on commit drop as
  with recursive dependents (oid, depth) as (
    select r.ev_class, 1 from pg_depend d join pg_rewrite r on r.oid = d.objid
     where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass
       and d.refobjid = 'public.image_generations'::regclass
    union
    select r.ev_class, s.depth + 1 from dependents s
      join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = s.oid
      join pg_rewrite r on r.oid = d.objid and r.ev_class <> s.oid
  )
  select format('%I.%I', n.nspname, c.relname) as name, c.relkind, pg_get_viewdef(c.oid) as definition,
         coalesce((select ' with (' || string_agg(o, ', ') || ')' from unnest(c.reloptions) o), '') as options,
         pg_get_userbyid(c.relowner) as owner, c.relacl as acl, obj_description(c.oid, 'pg_class') as comment,
         exists (select from pg_trigger g where g.tgrelid = c.oid)
           or exists (select from pg_attribute a where a.attrelid = c.oid and a.attacl is not null) as is_special,
         max(depth) as depth
    from dependents join pg_class c using (oid) join pg_namespace n on n.oid = c.relnamespace
   group by c.oid, n.nspname;

  for seen in select * from views order by depth desc loop
    if seen.relkind <> 'v' or seen.is_special then
      raise exception 'the view % uses image_generations: drop it, migrate, and create it again', seen.name;
    end if;
    execute 'drop view ' || seen.name;
  end loop;

  execute 'alter table public.image_generations ' || alterations;

  for seen in select * from views order by depth loop
    execute format('create view %s%s as %s', seen.name, seen.options, seen.definition);
    if seen.comment is not null then
      execute format('comment on view %s is %L', seen.name, seen.comment);
    end if;
    for grantee in select distinct case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as name
                     from pg_class c, aclexplode(c.relacl) a where c.oid = seen.name::regclass loop
      execute format('revoke all on %s from %s', seen.name, grantee.name);
    end loop;
    for grantee in select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as name,
                          a.privilege_type, case when a.is_grantable then ' with grant option' else '' end as option
                     from aclexplode(coalesce(seen.acl, acldefault('r', seen.owner::regrole))) a loop
      execute format('grant %s on %s to %s%s', grantee.privilege_type, seen.name, grantee.name, grantee.option);
    end loop;
    if seen.owner <> current_user then
      execute format('alter view %s owner to %I', seen.name, seen.owner);
    end if;
  end loop;
end $$;

do $$
declare
  label text;
  enum_type regtype;
  alterations text;
begin
  select string_agg(case c.type
           when 'timestamp without time zone' then format('alter %I type timestamptz using %1$I at time zone ''utc''', c.name)
           else format('alter %I type text', c.name) end, ', ')
    into alterations
    from pg_temp.older_columns() c
   where (c.name in ('created_at', 'updated_at') and c.type = 'timestamp without time zone')
      or (c.name in ('task_id', 'result', 'error', 'prompt', 'status') and c.type in ('character varying', 'uuid'));
  if alterations is not null then
    perform pg_temp.retype(alterations);
  end if;

  select a.atttypid into enum_type from pg_attribute a join pg_type t on t.oid = a.atttypid
   where a.attrelid = to_regclass('public.image_generations') and a.attname = 'status' and t.typtype = 'e';
  if enum_type is not null then
    foreach label in array array['pending', 'processing', 'completed', 'failed'] loop
      execute format('alter type %s add value if not exists %L', enum_type, label);
    end loop;
  end if;
end $$;

drop function pg_temp.retype(text);
drop function pg_temp.older_columns();
